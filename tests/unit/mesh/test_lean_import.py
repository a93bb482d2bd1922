"""libp2p is imported without what the mesh does not use, and nobody else notices."""

import json
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from aimo_node.errors import ConfigError
from aimo_node.mesh.fixes.lean_import import lean_imports
from aimo_node.mesh.fixes.version import require_known_version

ROOT = Path(__file__).parents[3]

UNUSED = {"aioquic", "zeroconf", "miniupnpc", "requests", "fastecdsa", "grpc", "dns", "coincurve"}


def run_fresh(program: str) -> str:
    """Run `program` in an interpreter that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_host_does_not_load_what_it_does_not_use():
    loaded = json.loads(
        run_fresh(
            "import json, sys, aimo_node.mesh.host, aimo_node.mesh.directory.gossip;"
            "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
        )
    )
    assert "libp2p" in loaded
    assert UNUSED.isdisjoint(loaded)


def test_the_host_is_light():
    """60 MB with trio, against 95 for `import libp2p` alone; the node has a budget of 130."""
    resident = run_fresh(
        "import aimo_node.mesh.host, psutil; print(psutil.Process().memory_info().rss)"
    )
    assert int(resident) < 80_000_000


def test_the_real_modules_can_be_imported_afterwards():
    answer = run_fresh(
        "import aimo_node.mesh.host, dns.resolver, Crypto.PublicKey.RSA as rsa;"
        "from libp2p.transport.quic.config import QUICTransportConfig as config;"
        "print(dns.resolver.Resolver.__module__, rsa.RsaKey.__module__, config.__mro__)"
    )
    assert answer.split()[:2] == ["dns.resolver", "Crypto.PublicKey.RSA"]
    assert "AbsentPart" not in answer


def test_modules_imported_before_are_put_back():
    answer = run_fresh(
        "import sys, dns.resolver; before = sys.modules['dns.resolver'];"
        "import aimo_node.mesh.host; print(sys.modules['dns.resolver'] is before)"
    )
    assert answer.strip() == "True"


def test_a_placeholder_serves_as_class_and_exception_and_says_what_it_is():
    with lean_imports():
        from dns.resolver import Resolver
    assert not isinstance(3, Resolver)
    with suppress(Resolver, ValueError):
        int("nothing")
    with pytest.raises(AttributeError, match=r"dns\.resolver\.Resolver is not loaded"):
        Resolver().query("example.org")


def test_another_version_of_libp2p_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.9.0")
    with pytest.raises(ConfigError, match=r"libp2p 0\.9\.0 .* pip install libp2p==0\.8\.1"):
        require_known_version()


def test_a_missing_libp2p_is_named(monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match="not installed"):
        require_known_version()


def test_libp2p_logs_nothing_and_leaves_the_root_logger_alone():
    """In a process of its own: pytest has handlers that would hide it."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging; from aimo_node.mesh.fixes.library import swarm_connection as module;"
            "logging.getLogger('libp2p.network.auto_connector').error('loud');"
            "logging.getLogger('libp2p.network.swarm').critical('loud');"
            "module.logging.warning('loud'); print(logging.getLogger().handlers)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
