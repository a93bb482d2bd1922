"""Headers that GitHub and Copilot expect, from what is asked; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from aimo_node.domain.ids import RequestId
from providers.http.upstream import Headers

GITHUB_API_VERSION: Final = "2025-04-01"

_AGENT_ROLES: Final = frozenset({"assistant", "tool", "function"})
_IMAGE_PARTS: Final = frozenset({"image_url", "input_image", "image"})


@dataclass(frozen=True, slots=True)
class Editor:
    """The editor that a request names; Copilot refuses requests that name none.

    Attributes:
        version: editor and its version, such as ``vscode/1.107.0``.
        plugin: Copilot's plug-in and its version.
        integration: how Copilot calls that editor.
    """

    version: str = "vscode/1.107.0"
    plugin: str = "copilot-chat/0.35.0"
    integration: str = "vscode-chat"

    @property
    def headers(self) -> Headers:
        """Sent with every request."""
        return (
            ("editor-version", self.version),
            ("editor-plugin-version", self.plugin),
            ("user-agent", f"GitHubCopilotChat/{self.plugin.rpartition('/')[2]}"),
            ("x-github-api-version", GITHUB_API_VERSION),
            ("accept", "application/json"),
        )


def github_headers(editor: Editor, github_token: str) -> Headers:
    """For GitHub's REST API, which calls the scheme ``token``."""
    return (*editor.headers, ("authorization", f"token {github_token}"))


def copilot_headers(editor: Editor, copilot_token: str) -> Headers:
    """For Copilot's API."""
    return (
        *editor.headers,
        ("authorization", f"Bearer {copilot_token}"),
        ("copilot-integration-id", editor.integration),
    )


def chat_headers(body: Mapping[str, Any], request_id: RequestId) -> Headers:
    """Of one chat request: who began it, whether it shows a picture, and its number."""
    messages = body.get("messages")
    messages = messages if isinstance(messages, list) else []
    headers = [
        ("openai-intent", "conversation-panel"),
        ("x-initiator", initiator(messages)),
        ("x-request-id", str(UUID(bytes=bytes(request_id)))),
    ]
    if has_image(messages):
        headers.append(("copilot-vision-request", "true"))
    return tuple(headers)


def initiator(messages: Sequence[object]) -> str:
    """``agent`` when a program goes on by itself, ``user`` when a person has spoken.

    Copilot counts the second against the owner's quota. The last message decides, as in the
    editor's own plug-in: after a tool's result or an unfinished answer nobody has typed anything.
    """
    last = messages[-1] if messages else None
    role = last.get("role") if isinstance(last, dict) else None
    return "agent" if role in _AGENT_ROLES else "user"


def has_image(messages: Sequence[object]) -> bool:
    """Whether any message carries a picture."""
    return any(
        isinstance(part, dict) and part.get("type") in _IMAGE_PARTS
        for message in messages
        if isinstance(message, dict)
        for part in _parts(message)
    )


def _parts(message: Mapping[str, Any]) -> Sequence[object]:
    content = message.get("content")
    return content if isinstance(content, list) else ()
