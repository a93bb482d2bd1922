"""Completions of an engine that streams them all, and writes log probabilities as in a chat."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.ports.engine import AnswerSink
from providers.answers import split_text
from providers.sinks import CollectingSink, PassingSink

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


class LegacyLogprobs(PassingSink):
    """A sink that turns a chat's log probabilities into those of completions."""

    def __init__(self, sink: AnswerSink) -> None:
        super().__init__(sink)
        self._offsets: dict[int, int] = {}

    def text(self, delta: str) -> None:
        """Give on text of choice 0, which has none."""
        self._offsets[0] = self._offsets.get(0, 0) + len(delta)
        self._sink.text(delta)

    def json(self, choices: bytes) -> None:
        """Give on a JSON delta in the older form."""
        found = _decode(choices)
        for choice in found:
            entries = (choice.get("logprobs") or {}).get("content")
            if isinstance(entries, list):
                start = self._offsets.get(choice["index"], 0)
                choice["logprobs"] = _legacy(entries, start)
            offset = self._offsets.get(choice["index"], 0)
            self._offsets[choice["index"]] = offset + len(choice.get("text") or "")
        self._sink.json(_encode(found))


class WholeCompletion(CollectingSink):
    """A sink that collects streamed completions and gives them on as one."""

    def __init__(self, sink: AnswerSink) -> None:
        self._sink = sink
        self._choices: dict[int, dict[str, Any]] = {}

    def text(self, delta: str) -> None:
        """Collect text of choice 0."""
        self._choice(0)["text"] += delta

    def json(self, choices: bytes) -> None:
        """Collect a JSON delta: texts and lists grow."""
        for piece in _decode(choices):
            choice = self._choice(piece["index"])
            choice["text"] += piece.get("text") or ""
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
            for name, entries in (piece.get("logprobs") or {}).items():
                choice.setdefault("logprobs", {}).setdefault(name, []).extend(entries)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Give on what was collected, and the end."""
        first = self._choice(0)
        if len(self._choices) == 1 and "logprobs" not in first:
            for piece in split_text(first["text"]):
                self._sink.text(piece)
        else:
            self._sink.json(_encode([self._choices[index] for index in sorted(self._choices)]))
        self._sink.finish(reason, usage)

    def _choice(self, index: int) -> dict[str, Any]:
        return self._choices.setdefault(index, {"index": index, "text": "", "finish_reason": None})


def _legacy(entries: list[Any], start: int) -> dict[str, list[Any]]:
    """OpenAI's older form: four lists of the same length.

    Args:
        start: where in the text the first token begins.
    """
    told: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for entry in entries:
        token = str(entry.get("token", ""))
        top = entry.get("top_logprobs") or []
        told["tokens"].append(token)
        told["token_logprobs"].append(entry.get("logprob"))
        told["top_logprobs"].append({one.get("token", ""): one.get("logprob") for one in top})
        told["text_offset"].append(start)
        start += len(token)
    return told
