"""What a node wants to know of a GGUF file before llama.cpp opens it: what kind of model it is."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from aimo_node.errors import EngineStartFailed

MAGIC: Final = b"GGUF"
ENTRIES_MAX: Final = 4096
"""Of metadata; real files have some forty."""

STRING_BYTES_MAX: Final = 16 << 20
"""A vocabulary's longest string is a few hundred bytes, a chat template some ten thousand."""

ARRAY_ITEMS_MAX: Final = 4 << 20
"""Vocabularies have up to 300,000 entries."""

ENCODERS: Final = frozenset(
    {
        "bert",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "t5encoder",
    }
)
"""Architectures that read text and write none."""

_POOLED: Final = frozenset({1, 2, 3})
"""Mean, first token, last token: one vector for a text. 0 is none."""
_RANKED: Final = 4

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


@dataclass(frozen=True, slots=True)
class GgufHead:
    """The metadata we use; 0 and empty if the file does not say.

    Attributes:
        embedding_numbers: of one vector.
        pooling: llama.cpp's number for how a text becomes one vector, -1 if the file does not say.
    """

    architecture: str = ""
    context_tokens: int = 0
    embedding_numbers: int = 0
    pooling: int = -1

    @property
    def embeds(self) -> bool:
        """Whether it was made for embeddings, and not for answers."""
        return self.architecture in ENCODERS or self.pooling in _POOLED

    @property
    def ranks(self) -> bool:
        """Whether it was made to rank documents."""
        return self.pooling == _RANKED


def read_head(path: Path) -> GgufHead:
    """Read the metadata of a GGUF file; blocks, for milliseconds.

    Raises:
        EngineStartFailed: it cannot be read, or is no GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _read_head(file)
    except OSError as error:
        raise EngineStartFailed(f"{path} cannot be read: {error.strerror}") from error
    except struct.error as error:
        raise EngineStartFailed(
            f"{path} is not a usable GGUF file: it ends too early; download it again"
        ) from error
    except ValueError as error:
        raise EngineStartFailed(f"{path} is not a usable GGUF file: {error}") from error


def _read_head(file: BinaryIO) -> GgufHead:
    if file.read(4) != MAGIC:
        raise ValueError("it does not start with GGUF")
    version, _tensors, entries = _unpack(file, "<IQQ")
    if not 2 <= version <= 3 or entries > ENTRIES_MAX:
        raise ValueError(f"version {version} with {entries} entries of metadata")
    found: dict[str, object] = {}
    for _ in range(entries):
        key = _read_string(file).decode("utf-8", "replace")
        if key.startswith("tokenizer."):
            break  # the vocabulary is long and comes last
        found[key] = _read_value(file, _unpack(file, "<I")[0])
    name = found.get("general.architecture")
    architecture = name.decode("utf-8", "replace") if isinstance(name, bytes) else ""

    def number(key: str, unknown: int = 0) -> int:
        value = found.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else unknown

    return GgufHead(
        architecture,
        context_tokens=number("context_length"),
        embedding_numbers=number("embedding_length"),
        pooling=number("pooling_type", -1),
    )


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _read_string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "<Q")
    if length > STRING_BYTES_MAX:
        raise ValueError(f"a string of {length} bytes in its metadata")
    return file.read(length)


def _read_value(file: BinaryIO, kind: int) -> object:
    """A scalar or a string; arrays are passed over."""
    if kind == _STRING:
        return _read_string(file)
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])[0]
    if kind != _ARRAY:
        raise ValueError(f"metadata of unknown type {kind}")
    item_kind, items = _unpack(file, "<IQ")
    if items > ARRAY_ITEMS_MAX or item_kind not in {_STRING, *_SCALARS}:
        raise ValueError(f"an array of {items} items in its metadata")
    if item_kind == _STRING:
        for _ in range(items):
            _read_string(file)
    else:
        file.seek(items * struct.calcsize(_SCALARS[item_kind]), 1)
    return None
