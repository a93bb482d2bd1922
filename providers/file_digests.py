"""The sha256 of large files: computed once, remembered, and taken from the name where it is one.

A model of 40 GB takes half a minute to read. Hugging Face's cache calls each weight file by its
sha256, so nothing is read there at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DIGESTS_KEPT_MAX: Final = 1024
"""Of files; the largest models come in some two hundred."""

CACHE_BYTES_MAX: Final = 4 << 20
"""A cache file longer than this was not written by us."""

_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")


class FileDigests:
    """Digests of files, remembered in a file from one start to the next. Used by one thread.

    Args:
        cache_file: holds digests by path, size and time of change; a damaged one is ignored, and
            one that cannot be written is no failure.
    """

    def __init__(self, cache_file: Path) -> None:
        self._cache_file = cache_file
        self._known = _read_cache(cache_file)
        self._fresh: dict[str, str] = {}

    def digest(self, path: Path) -> bytes:
        """The sha256 of a file; blocks, for seconds per gigabyte the first time.

        Raises:
            OSError: it cannot be read.
        """
        resolved = path.resolve()
        found = resolved.stat()
        if found.st_size and (name := _blob_name(resolved)):
            return bytes.fromhex(name)
        key = f"{resolved}:{found.st_size}:{found.st_mtime_ns}"
        known = self._known.get(key)
        if known is None:
            with resolved.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            self._known[key] = self._fresh[key] = known
        return bytes.fromhex(known)

    def save(self) -> None:
        """Remember what was computed; written whole or not at all."""
        if not self._fresh:
            return
        # Another engine of this node may have written meanwhile.
        kept = list((_read_cache(self._cache_file) | self._fresh).items())[-DIGESTS_KEPT_MAX:]
        self._fresh = {}
        mark = f".{os.getpid()}-{threading.get_ident()}.new"
        unfinished = self._cache_file.with_name(self._cache_file.name + mark)
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(dict(kept), indent=1), encoding="utf-8")
            unfinished.replace(self._cache_file)


def _blob_name(resolved: Path) -> str:
    """The sha256 by which Hugging Face's cache calls a large file; empty for any other file.

    Small files there are called by git's sha1, which is shorter.
    """
    in_cache = resolved.parent.name == "blobs"
    return resolved.name if in_cache and _SHA256_HEX.fullmatch(resolved.name) else ""


def _read_cache(cache_file: Path) -> dict[str, str]:
    try:
        with cache_file.open("rb") as file:
            cached = json.loads(file.read(CACHE_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return _only_digests(cached) if isinstance(cached, dict) else {}


def _only_digests(cached: Mapping[str, object]) -> dict[str, str]:
    return {
        key: digest
        for key, digest in cached.items()
        if isinstance(digest, str) and _SHA256_HEX.fullmatch(digest)
    }
