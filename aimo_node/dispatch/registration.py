"""The vocabulary for endpoints that are added to a running node, between its door and the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """What somebody on this machine asks the node to serve.

    Attributes:
        label: how to name it here; empty picks a name.
        api_key: goes into a file of mode 0600 and nowhere else.
        models: names in the mesh, each with the endpoint's own; excludes `model`.
    """

    endpoint: str
    engine: str = "openai"
    label: str = ""
    api_key: str = field(default="", repr=False)
    model: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    served_name: str = ""
    requests_max: int = 0


@dataclass(frozen=True, slots=True)
class RegisteredEndpoint:
    """An endpoint that was added, and how it does.

    Attributes:
        state: an engine state, in lower case.
        detail: the latest news of its start, or why it was given up.
    """

    label: str
    engine: str
    endpoint: str
    state: str
    models: tuple[str, ...] = ()
    detail: str = ""


class EndpointRegistry(Protocol):
    """Adds and removes endpoints of this node; what was added is there after a restart, too."""

    async def register(self, wanted: NewEndpoint) -> RegisteredEndpoint:
        """Serve an endpoint from now on; returns once it answers, or is still being tried.

        Raises:
            InvalidRequest: it cannot work, or there are too many; nothing was added.
        """

    async def remove(self, label: str) -> bool:
        """Serve it no longer; False if there is none of that label."""

    def registered(self) -> Sequence[RegisteredEndpoint]:
        """Every endpoint that was added, in that order."""
