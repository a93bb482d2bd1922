"""The ready line is a contract with scripts and service managers."""

from __future__ import annotations

import json

from aimo_node.domain.ids import ModelName, PeerId, Role
from aimo_node.domain.ready import ReadyLine

PEER = PeerId("12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk")


def test_the_line_has_every_key_of_the_contract() -> None:
    ready = ReadyLine(
        peer_id=PEER,
        roles=Role.RELAY | Role.PROVIDER | Role.EDGE,
        listen=(f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",),
        http="http://127.0.0.1:8000",
        models=(ModelName("tiny"),),
        join="aimo:x",
    )
    text = ready.to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "ready": True,
        "peer_id": PEER,
        "roles": ["relay", "provider", "edge"],
        "listen": [f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"],
        "http": "http://127.0.0.1:8000",
        "models": ["tiny"],
        "join": "aimo:x",
        "paused": False,
    }


def test_a_node_without_http_says_null() -> None:
    line = json.loads(ReadyLine(peer_id=PEER, roles=Role.PROVIDER).to_json())
    assert line["http"] is None
    assert line["join"] is None
    assert line["models"] == []
