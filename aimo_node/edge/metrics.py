"""What the edge counts; `telemetry` keeps the numbers."""

from __future__ import annotations

from typing import Protocol


class EdgeMetrics(Protocol):
    """Told of each request's life. Calls return at once and never raise."""

    def request_started(self, endpoint: str) -> None:
        """A validated request goes to the dispatcher; `endpoint` is a name such as ``chat``."""

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        """Exactly once for each `request_started`.

        Args:
            outcome: ``ok``, ``cancelled`` or the name of the error's code.
        """

    def first_token(self, seconds: float) -> None:
        """The first parts of an answer are here, so long after the request."""

    def chunks(self, count: int) -> None:
        """So many parts arrived together."""


class NoMetrics:
    """Counts nothing."""

    def request_started(self, endpoint: str) -> None:
        """Nothing."""

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        """Nothing."""

    def first_token(self, seconds: float) -> None:
        """Nothing."""

    def chunks(self, count: int) -> None:
        """Nothing."""
