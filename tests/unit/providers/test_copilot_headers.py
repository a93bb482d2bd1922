"""Who began a request, whether it shows a picture, and what every request says of itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from aimo_node.domain.ids import RequestId
from providers.copilot.headers import Editor, chat_headers, copilot_headers, github_headers

USER = {"role": "user", "content": "hello"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "4"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = {"type": "text", "text": "what is this?"}


def headers_of(messages: object) -> dict[str, str]:
    return dict(chat_headers({"messages": messages}, RequestId(uuid4().bytes)))


@pytest.mark.parametrize(
    ("messages", "initiator"),
    [
        ([USER], "user"),
        ([{"role": "system", "content": "be brief"}, USER], "user"),
        ([USER, CALL, RESULT], "agent"),
        ([USER, {"role": "assistant", "content": "half an ans"}], "agent"),
        ([USER, CALL, {"role": "function", "name": "f", "content": "4"}], "agent"),
        ([USER, CALL, RESULT, USER], "user"),
        ([USER, {"role": "assistant", "content": "4"}, USER], "user"),
        ([{"role": "system", "content": "begin"}], "user"),
        ([{"role": "developer", "content": "begin"}], "user"),
        ([], "user"),
        (None, "user"),
        (["nonsense"], "user"),
    ],
)
def test_the_last_message_says_who_began(messages: object, initiator: str) -> None:
    """What a person typed counts against the quota, what a tool returned does not."""
    assert headers_of(messages)["x-initiator"] == initiator


@pytest.mark.parametrize(
    ("messages", "vision"),
    [
        ([USER], False),
        ([{"role": "user", "content": [TEXT]}], False),
        ([{"role": "user", "content": [TEXT, IMAGE]}], True),
        ([{"role": "user", "content": [IMAGE]}, CALL, RESULT], True),
        ([{"role": "tool", "content": [{"type": "image"}]}], True),
        ([{"role": "user", "content": [{"type": "input_image"}]}], True),
        ([{"role": "user", "content": "image_url"}], False),
        ([{"role": "user", "content": None}], False),
        (["nonsense", {"content": ["image_url"]}], False),
    ],
)
def test_a_picture_anywhere_is_announced(messages: list[Any], vision: bool) -> None:
    expected = "true" if vision else None
    assert headers_of(messages).get("copilot-vision-request") == expected


def test_a_request_carries_its_own_number() -> None:
    number = uuid4()
    headers = dict(chat_headers({"messages": [USER]}, RequestId(number.bytes)))
    assert UUID(headers["x-request-id"]) == number
    assert headers["openai-intent"] == "conversation-panel"


def test_requests_name_the_editor_and_each_service_its_own_scheme() -> None:
    editor = Editor("vscode/9", "copilot-chat/8")
    github, copilot = dict(github_headers(editor, "g")), dict(copilot_headers(editor, "c"))
    assert github["authorization"] == "token g"
    assert copilot["authorization"] == "Bearer c"
    assert copilot["copilot-integration-id"] == "vscode-chat"
    for headers in (github, copilot):
        assert headers["editor-version"] == "vscode/9"
        assert headers["editor-plugin-version"] == "copilot-chat/8"
        assert headers["user-agent"] == "GitHubCopilotChat/8"
        assert headers["x-github-api-version"]
