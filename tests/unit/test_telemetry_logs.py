"""Logs: two formats, no secrets, no terminal tricks, no floods, no crash without a reader."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from aimo_node.telemetry.logs import (
    FOREIGN_RECORDS_MAX,
    FOREIGN_WINDOW_SECONDS,
    HIDDEN,
    ForeignHandler,
    LogFormat,
    LogLevel,
    configure_logging,
)


@pytest.fixture(autouse=True)
def process_wide_logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.lastResort, logging.raiseExceptions)
    yield
    root.handlers[:], root.level = before[0], before[1]
    logging.lastResort, logging.raiseExceptions = before[2], before[3]
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def libp2p_logs_as_it_was_shipped() -> Iterator[None]:
    """The mesh silences libp2p's logger when it is imported, which another test may have done."""
    logger = logging.getLogger("libp2p")
    before = (logger.level, logger.propagate, logger.handlers[:])
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, []
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1], before[2]


def configured(level: LogLevel = "info", log_format: LogFormat = "json") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(level, log_format, stream=stream)
    return stream


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_per_event() -> None:
    stream = configured()
    structlog.get_logger().info("link.opened", peer="12D3", frames=3)
    (event,) = events(stream)
    assert event["event"] == "link.opened"
    assert event["level"] == "info"
    assert event["frames"] == 3
    assert event["timestamp"].endswith("Z")


def test_events_below_the_level_are_dropped() -> None:
    stream = configured("warning")
    structlog.get_logger().info("quiet.event")
    structlog.get_logger().warning("loud.event")
    assert [event["event"] for event in events(stream)] == ["loud.event"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_values_under_secret_names_are_hidden(log_format: LogFormat) -> None:
    stream = configured(log_format=log_format)
    structlog.get_logger().info("node.started", secret="hunter2", join="aimo:hunter2")
    assert "hunter2" not in stream.getvalue()
    assert HIDDEN in stream.getvalue()


def test_a_peer_cannot_drive_the_terminal() -> None:
    stream = configured(log_format="text")

    def parse() -> None:
        raise ValueError("\x1b[2J gone")

    try:
        parse()
    except ValueError:
        structlog.get_logger().exception("link.closed", agent="\x1b]0;owned\x07\u202e")
    text = stream.getvalue()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "ValueError" in text


def test_a_traceback_shows_no_local_variables() -> None:
    stream = configured(log_format="text")

    def answer(prompt: str) -> None:
        raise RuntimeError(str(len(prompt)))

    try:
        answer("something " + "private")
    except RuntimeError:
        structlog.get_logger().exception("task.failed")
    assert "something private" not in stream.getvalue()


@pytest.mark.parametrize(
    ("logger", "level", "is_heard"),
    [
        ("libp2p.network", logging.WARNING, False),
        ("libp2p.network", logging.ERROR, True),
        ("hypercorn.error", logging.INFO, False),
        ("hypercorn.error", logging.WARNING, True),
        ("", logging.WARNING, True),
    ],
)
def test_libraries_are_heard_when_it_matters(logger: str, level: int, is_heard: bool) -> None:
    stream = configured()
    logging.getLogger(logger).log(level, "happened %s", "thing")
    texts = [event["text"] for event in events(stream)]
    assert texts == (["happened thing"] if is_heard else [])


def test_a_library_that_left_the_tree_is_still_formatted() -> None:
    """libp2p takes its logger off the tree; its records go to the handler of last resort."""
    stream = configured()
    logger = logging.getLogger("libp2p")
    before = logger.propagate
    logger.propagate = False
    try:
        logger.error("off the tree")
    finally:
        logger.propagate = before
    assert [event["library"] for event in events(stream)] == ["libp2p"]


def test_a_flood_from_a_library_is_cut_and_said_so() -> None:
    stream = configured()
    clock = [100.0]
    handler = ForeignHandler(logging.INFO, now=lambda: clock[0])
    record = logging.LogRecord("libp2p.x", logging.ERROR, "f", 1, "again", None, None)
    for _ in range(FOREIGN_RECORDS_MAX + 30):
        handler.emit(record)
    assert len(events(stream)) == FOREIGN_RECORDS_MAX
    clock[0] += FOREIGN_WINDOW_SECONDS
    handler.emit(record)
    muted, logged = events(stream)[FOREIGN_RECORDS_MAX:]
    assert muted["event"] == "library.muted"
    assert muted["dropped"] == 30
    assert logged["event"] == "library.logged"


def test_a_record_that_cannot_be_formatted_is_shown_raw() -> None:
    stream = configured()
    logging.getLogger("other").error("%d apples", "three")
    assert events(stream)[0]["text"] == "%d apples"


class BrokenPipe(io.StringIO):
    """What stderr is after `aimo edge 2>&1 | head` has seen enough."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_logging_without_a_reader_goes_on() -> None:
    configure_logging("info", "text", stream=BrokenPipe())
    structlog.get_logger().info("still.alive")
