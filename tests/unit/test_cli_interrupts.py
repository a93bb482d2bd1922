"""Signals raise, except where they must wait."""

from __future__ import annotations

import signal

import pytest

from aimo_node.cli.interrupts import InterruptGate


def test_ctrl_c_raises_where_the_gate_is_open() -> None:
    with pytest.raises(KeyboardInterrupt), InterruptGate():
        signal.raise_signal(signal.SIGINT)


def test_sigterm_is_an_orderly_exit() -> None:
    with pytest.raises(SystemExit) as caught, InterruptGate():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 0


def test_a_signal_waits_while_the_gate_is_closed() -> None:
    steps: list[str] = []

    def work() -> None:
        with InterruptGate() as gate:
            with gate.closed():
                signal.raise_signal(signal.SIGINT)
                steps.append("still here")
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["still here"]


def test_the_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with InterruptGate():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_ignored_hangup_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptGate() as gate:
            signal.raise_signal(signal.SIGHUP)
            assert gate.received == []
    finally:
        signal.signal(signal.SIGHUP, before)
