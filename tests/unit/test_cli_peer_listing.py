"""How `aimo peers` shows peers: readable in 80 columns, whole in a pipe."""

from __future__ import annotations

import pytest

from aimo_node.cli.peer_listing import duration, print_peers, short_peer, terminal_lines

RELAY = "12D3KooWP4tiarzkiabZp3Zd5yiD4qfUz7W7qG59rCwkpGtkjCR1"
GPU = "12D3KooWR32vzoBiTyhKT5TugiwkfGkwX5rWTuSgUcN1h6gCazu4"
LOST = "12D3KooWF6mnsXA81ocw3UpR3HvttVLxXG6jnHmjpkDWd9KN2z9k"
REASON = (
    f"circuit through {RELAY}: direct dial failed: /ip4/198.51.100.7/tcp/4001: connection refused"
)
PEERS = [
    {
        "id": RELAY,
        "object": "peer",
        "roles": ["relay"],
        "path": "direct",
        "address": "/ip4/203.0.113.7/tcp/4001",
        "round_trip_ms": 21.34,
        "since_seconds": 400_000,
        "reason": "dialled",
        "models": [],
    },
    {
        "id": GPU,
        "object": "provider",
        "roles": ["provider", "edge"],
        "path": "circuit",
        "relay": RELAY,
        "address": "",
        "round_trip_ms": 143.4,
        "since_seconds": 185,
        "reason": REASON,
        "models": ["qwen3-coder-30b-a3b-instruct", "llama-3.3-70b", "tiny"],
        "model_states": {"tiny": "stopped"},
        "status": "healthy",
        "running": 2,
        "waiting": 1,
        "trusted": False,
        "engines": [{"label": "gpu", "state": "running"}, {"label": "cpu", "state": "error"}],
        "region": "eu",
    },
    {"id": LOST, "object": "provider", "roles": ["provider"], "path": None, "status": "offline"},
]


def test_eighty_columns_are_enough() -> None:
    assert list(terminal_lines(PEERS, 80)) == [
        "peer       roles           path     round trip  since  models",
        "…pGtkjCR1  relay           direct      21.3 ms  4 d",
        "           dialled, /ip4/203.0.113.7/tcp/4001",
        "…h6gCazu4  provider, edge  circuit      143 ms  3 min",
        "           models: qwen3-coder-30b-a3b-instruct, llama-3.3-70b, tiny (stopped)",
        "           circuit through …pGtkjCR1: direct dial failed:",
        "           /ip4/198.51.100.7/tcp/4001: connection refused",
        "           healthy (not trusted), 2 running, 1 waiting, gpu, cpu (error), eu",
        "…d9KN2z9k  provider        no link",
        "           offline, 0 running, 0 waiting",
    ]


@pytest.mark.parametrize("columns", [72, 80, 132])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    assert max(map(len, terminal_lines(PEERS, columns))) <= columns


def test_a_pipe_gets_one_line_a_peer_with_whole_ids(capsys: pytest.CaptureFixture[str]) -> None:
    print_peers(PEERS)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["peer", "id", "roles", "path"]
    assert [line.split()[0] for line in lines] == [RELAY, GPU, LOST]
    assert lines[1].endswith(REASON)


def test_an_edge_of_an_older_version_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    old = {"id": GPU, "models": ["tiny"], "status": "healthy", "path": "direct"}
    assert list(terminal_lines([old], 80))[1:] == [
        "…h6gCazu4  provider  direct                     tiny",
        "           healthy, 0 running, 0 waiting",
    ]
    print_peers([old])
    assert "provider  direct  -" in capsys.readouterr().out


def test_what_a_peer_says_cannot_drive_the_terminal() -> None:
    bad = {**PEERS[1], "models": ["\x1b[2Jx"], "region": "\x1b]0;x\x07", "reason": "\x1b[1m"}
    assert not any("\x1b" in line for line in terminal_lines([bad], 80))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (185, "3 min"), (3600, "1 h"), (200_000, "2 d")],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_short_id_is_its_end() -> None:
    assert short_peer(RELAY) == "…pGtkjCR1"
    assert short_peer("short") == "short"
