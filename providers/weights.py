"""What a node wants to know of a GGUF file before llama.cpp opens it: context length and digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
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

DIGESTS_KEPT_MAX: Final = 64

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
_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufHead:
    """The metadata we use; 0 and empty if the file does not say."""

    architecture: str = ""
    context_tokens: int = 0


def read_head(path: Path) -> GgufHead:
    """Read the metadata of a GGUF file; blocks, for milliseconds.

    Raises:
        EngineStartFailed: it cannot be read, or is no GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _read_head(file)
    except (OSError, ValueError, struct.error) as error:
        raise EngineStartFailed(f"{path} is not a usable GGUF file: {error}") from error


def _read_head(file: BinaryIO) -> GgufHead:
    if file.read(4) != MAGIC:
        raise ValueError("it does not start with GGUF")
    version, _tensors, entries = _unpack(file, "<IQQ")
    if not 2 <= version <= 3 or entries > ENTRIES_MAX:
        raise ValueError(f"version {version} with {entries} entries of metadata")
    architecture, context_tokens = "", 0
    for _ in range(entries):
        key = _read_string(file).decode("utf-8", "replace")
        value = _read_value(file, _unpack(file, "<I")[0])
        if key == "general.architecture" and isinstance(value, bytes):
            architecture = value.decode("utf-8", "replace")
        elif key == f"{architecture}.context_length" and isinstance(value, int):
            context_tokens = value
        if architecture and context_tokens:
            break  # the vocabulary comes later and is long
    return GgufHead(architecture, context_tokens)


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


def weights_digest(path: Path, cache_file: Path) -> bytes:
    """The sha256 over the weights; blocks, for seconds per gigabyte the first time.

    Of a model in several files, ``…-00001-of-00003.gguf``, it is the sha256 over their digests.

    Args:
        cache_file: remembers digests by path, size and time of change; a damaged one is ignored.

    Raises:
        EngineStartFailed: a file cannot be read.
    """
    cached = _read_cache(cache_file)
    fresh: dict[str, str] = {}
    try:
        for part in _parts(path):
            found = part.stat()
            key = f"{part.resolve()}:{found.st_size}:{found.st_mtime_ns}"
            fresh[key] = cached.get(key) or _file_digest(part)
    except OSError as error:
        raise EngineStartFailed(f"the weights cannot be read: {error}") from error
    if not fresh.keys() <= cached.keys():
        _write_cache(cache_file, {**cached, **fresh})
    digests = [bytes.fromhex(digest) for digest in fresh.values()]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def _parts(path: Path) -> list[Path]:
    split = _PART.fullmatch(path.name)
    if split is None:
        return [path]
    stem, _, count = split.groups()
    names = (f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1))
    return [path.with_name(name) for name in names]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(cache_file: Path) -> dict[str, str]:
    try:
        cached = json.loads(cache_file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(cached, dict):
        return {}
    return {
        key: digest
        for key, digest in cached.items()
        if isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)
    }


def _write_cache(cache_file: Path, digests: dict[str, str]) -> None:
    """Write it whole or not at all; failing to is no reason not to serve."""
    kept = dict(list(digests.items())[-DIGESTS_KEPT_MAX:])
    unfinished = cache_file.with_name(cache_file.name + ".new")
    with contextlib.suppress(OSError):
        unfinished.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        unfinished.replace(cache_file)
