"""The proof of a mesh secret: what `docs/protocol/v1.md` shows as its worked example."""

from __future__ import annotations

import hashlib
import hmac

from aimo_node.domain.ids import PeerId
from aimo_node.protocol.frames import Hello
from aimo_node.protocol.handshake import Admission, mesh_id, mesh_proof

SECRET = bytes(range(32))
A = PeerId("12D3KooWGC6CvBVWy9LFMaQgSkHHX5sGwyXCB8GMPSrQ8jT7AK8p")
B = PeerId("12D3KooWN6KQRUSEkPtFkHTzcVVGAPmPJxZqRWpPWCUYqV5Hmo8d")


def test_a_mesh_is_named_by_a_hash_of_its_secret() -> None:
    assert mesh_id(SECRET) == hashlib.sha256(b"aimo-mesh-1\0" + SECRET).digest()[:16]
    assert mesh_id(None) == b""


def test_a_proof_binds_both_peers_in_their_order() -> None:
    spoken = b"aimo-hello-1\0" + A.encode() + b"\0" + B.encode()
    assert mesh_proof(SECRET, A, B) == hmac.new(SECRET, spoken, "sha256").digest()
    assert mesh_proof(SECRET, A, B) != mesh_proof(SECRET, B, A)
    assert mesh_proof(None, A, B) == b""


def test_the_highest_common_version_is_spoken() -> None:
    newer = Admission(A, versions=(1, 2))
    assert newer.check(Hello([1, 2, 3]), B) == 2
    assert newer.check(Hello([1]), B) == 1
