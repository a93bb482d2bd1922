"""Reads an answer in the form ``{"data": […], "usage": …}``: embeddings and images.

Numbers are checked, but neither converted nor written anew: a batch is megabytes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec

from aimo_node.domain.answer import Usage
from aimo_node.errors import EngineFailed, InvalidRequest
from providers.answers import NOT_JSON
from providers.openai.stream import raise_error_in, read_usage

DATA_BYTES_MAX: Final = 8 << 20
"""What the mesh carries as one answer: 1,000 vectors of 1,536 numbers in base64, 250 as JSON."""

ENTRIES_MAX: Final = 2048
"""OpenAI's own bound for the inputs of one request."""

_NOTHING: Final = msgspec.Raw()
_Index = Annotated[int, msgspec.Meta(ge=0, lt=ENTRIES_MAX)]


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw] = []
    usage: dict[str, Any] | None = None
    error: Any = None


class _Entry(msgspec.Struct):
    """One vector or one image; what else a vendor says of it is left out."""

    index: _Index | None = None
    embedding: msgspec.Raw = _NOTHING
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_decode_vector = msgspec.json.Decoder(str | list[float]).decode
_encode = msgspec.json.Encoder().encode


class DataAnswer:
    """One answer, read entry by entry so that other tasks get their turn between them.

    Args:
        body: the whole answer.
        entries_wanted: how many there must be; 0 takes any number.

    Raises:
        EngineFailed: it is an error, or of another form.
    """

    def __init__(self, body: bytes, entries_wanted: int = 0) -> None:
        try:
            answer = _decode_answer(body)
        except NOT_JSON as error:
            raise EngineFailed("the engine's answer has no list of data") from error
        raise_error_in({"error": answer.error})
        if not answer.data or len(answer.data) > ENTRIES_MAX:
            raise EngineFailed(f"the engine answered with {len(answer.data)} entries")
        if entries_wanted and len(answer.data) != entries_wanted:
            found = len(answer.data)
            raise EngineFailed(f"the engine answered {found} of {entries_wanted} inputs")
        self.usage = read_usage({"usage": answer.usage}) or Usage()
        self._entries = answer.data
        self._written: dict[int, bytes] = {}

    def read(self) -> Iterator[None]:
        """Check the entries, one per step.

        Raises:
            EngineFailed: an entry is neither vector nor image, or two have the same place.
            InvalidRequest: all together are more than the mesh carries.
        """
        size = 0
        for position, raw in enumerate(self._entries):
            index, written = _write_entry(position, raw)
            if index in self._written or index >= len(self._entries):
                raise EngineFailed("the engine numbered its answers in a way nobody understands")
            size += len(written) + 1
            if size >= DATA_BYTES_MAX:
                raise too_much_data()
            self._written[index] = written
            yield

    def data(self) -> bytes:
        """The entries as a JSON array in their order, after `read`."""
        return b"[" + b",".join(self._written[index] for index in sorted(self._written)) + b"]"


def too_much_data() -> InvalidRequest:
    """The error for an answer that is longer than what can travel."""
    return InvalidRequest(
        f"the answer is longer than {DATA_BYTES_MAX} bytes: send fewer inputs at a time, or ask "
        "for encoding_format base64",
        param="input",
    )


def inputs_of(body: Mapping[str, Any]) -> int:
    """How many vectors an embeddings request asks for; 0 if it is none."""
    given = body.get("input")
    if isinstance(given, list):
        # A list of numbers is one text, already in tokens.
        return 1 if given and isinstance(given[0], int) else len(given)
    return 1 if given is not None else 0


def _write_entry(position: int, raw: msgspec.Raw) -> tuple[int, bytes]:
    try:
        entry = _decode_entry(raw)
        if vector := bytes(entry.embedding):
            return _write_vector(position if entry.index is None else entry.index, vector)
    except NOT_JSON as error:
        raise EngineFailed("the engine sent an entry of data nobody understands") from error
    image = {name: getattr(entry, name) for name in ("b64_json", "url") if getattr(entry, name)}
    if not image:
        raise EngineFailed("the engine sent an entry of data that is neither vector nor image")
    if entry.revised_prompt:
        image["revised_prompt"] = entry.revised_prompt
    return position, _encode(image)


def _write_vector(index: int, vector: bytes) -> tuple[int, bytes]:
    """Raises what msgspec raises if `vector` is neither base64 nor numbers."""
    numbers = _decode_vector(vector)
    if not numbers:
        raise EngineFailed("the engine sent an empty vector")
    if b"\n" in vector or b"\r" in vector:
        vector = _encode(numbers)
    return index, b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
