"""What a model is, in 32 bytes: two providers with the same digest give the same answers.

The encoding, for whoever computes it elsewhere: sha256 over the tag ``aimo-model-1`` with a zero
byte, then five lists in the order of `ModelParts`, a single value being a list of one. A list is
its length and its items, an item its length in bytes and its bytes. Lengths are 64 bits, the
highest byte first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aimo_node.errors import EngineStartFailed
from providers.file_digests import FileDigests

CONFIG_BYTES_MAX: Final = 4 << 20
"""Of config.json; real ones have a few kilobytes."""

_TAG: Final = b"aimo-model-1\0"
_LENGTH_BYTES: Final = 8

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""The first kind that is there; a folder often holds the same weights in an older kind too."""

_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "*.tiktoken",
)
_CHAT_TEMPLATE: Final = (
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_ADAPTER: Final = ("adapter_config.json", "*.safetensors", "*.bin")
_SPLIT_GGUF: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Everything that makes a model's answers.

    Attributes:
        weights: sha256 of each weight file, in the order of the file names.
        tokenizer, chat_template: sha256 each; empty if they lie in the weight files.
        quantization: what the engine is told about it, as text; empty if the weights say all.
        adapters: sha256 of each adapter, in the order in which they are applied.
    """

    weights: tuple[bytes, ...]
    tokenizer: bytes = b""
    chat_template: bytes = b""
    quantization: str = ""
    adapters: tuple[bytes, ...] = ()


def model_digest(parts: ModelParts) -> bytes:
    """The sha256 over all parts, see the module."""
    lists: tuple[Sequence[bytes], ...] = (
        parts.weights,
        (parts.tokenizer,),
        (parts.chat_template,),
        (parts.quantization.encode(),),
        parts.adapters,
    )
    return hashlib.sha256(_TAG + b"".join(map(_encoded, lists))).digest()


def snapshot_parts(folder: Path, cache_file: Path, adapters: Sequence[Path] = ()) -> ModelParts:
    """The parts of a model folder as Hugging Face lays it out; blocks while it reads new files.

    Args:
        cache_file: see `FileDigests`.
        adapters: folders of LoRA adapters, each with its ``adapter_config.json``.

    Raises:
        EngineStartFailed: there are no weights in it, or something cannot be read.
    """
    digests = FileDigests(cache_file)
    try:
        return ModelParts(
            weights=tuple(map(digests.digest, _weight_files(folder))),
            tokenizer=_named(digests, folder, _TOKENIZER),
            chat_template=_named(digests, folder, _CHAT_TEMPLATE),
            quantization=_quantization(folder),
            adapters=tuple(_adapter(digests, adapter) for adapter in adapters),
        )
    except OSError as error:
        raise EngineStartFailed(f"the model's files cannot be read: {error}") from error
    finally:
        digests.save()


def gguf_parts(path: Path, cache_file: Path) -> ModelParts:
    """The parts of a GGUF file, which holds weights, tokenizer and chat template all together.

    Args:
        path: the file, or the first one of a split model, ``…-00001-of-00003.gguf``.
        cache_file: see `FileDigests`.

    Raises:
        EngineStartFailed: a file cannot be read.
    """
    digests = FileDigests(cache_file)
    try:
        return ModelParts(tuple(map(digests.digest, gguf_files(path))))
    except OSError as error:
        raise EngineStartFailed(f"the weights cannot be read: {error}") from error
    finally:
        digests.save()


def gguf_files(path: Path) -> list[Path]:
    """All files of a model of which `path` is the only or any one, whether they exist or not."""
    split = _SPLIT_GGUF.fullmatch(path.name)
    if split is None:
        return [path]
    stem, _, count = split.groups()
    names = (f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1))
    return [path.with_name(name) for name in names]


def _encoded(items: Sequence[bytes]) -> bytes:
    return _length(len(items)) + b"".join(_length(len(item)) + item for item in items)


def _length(number: int) -> bytes:
    return number.to_bytes(_LENGTH_BYTES, "big")


def _weight_files(folder: Path) -> list[Path]:
    for pattern in _WEIGHTS:
        if found := _files(folder, (pattern,)):
            return found
    raise EngineStartFailed(
        f"{folder} holds no weights (*.safetensors): is it the folder of a model, and complete?"
    )


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """In the order of their names, whatever the order in the directory."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _named(digests: FileDigests, folder: Path, patterns: Iterable[str]) -> bytes:
    """One sha256 over some small files with their names, which say what they are for."""
    found = _files(folder, patterns)
    if not found:
        return b""
    items: list[bytes] = []
    for path in found:
        items += [path.relative_to(folder).as_posix().encode(), digests.digest(path)]
    return hashlib.sha256(_encoded(items)).digest()


def _adapter(digests: FileDigests, folder: Path) -> bytes:
    if not (folder / "adapter_config.json").is_file():
        raise EngineStartFailed(f"{folder} is no LoRA adapter: it has no adapter_config.json")
    return _named(digests, folder, _ADAPTER)


def _quantization(folder: Path) -> str:
    """What the model's own files say about it, in one spelling."""
    told = {
        "quantization_config": _json(folder / "config.json").get("quantization_config"),
        "hf_quant_config": _json(folder / "hf_quant_config.json"),
    }
    told = {name: value for name, value in told.items() if value}
    return json.dumps(told, sort_keys=True, separators=(",", ":")) if told else ""


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none. That it is damaged is the engine's to say."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(CONFIG_BYTES_MAX))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
