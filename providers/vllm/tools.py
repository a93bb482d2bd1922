"""Which of vLLM's tool parsers understands a model: by its name and its configuration.

The names are those of vLLM 0.32. A model nobody has listed gets none: a wrong parser would garble
its answers, while the owner can always say ``--tool-call-parser``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

NO_PARSER: Final = "none"
"""What an owner says who wants no tools."""

CONFIG_BYTES_MAX: Final = 4 << 20

_FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    # The more special name comes first: the first that fits is taken.
    # What was distilled from R1 is a Qwen or a Llama, and trained on no tools.
    (r"deepseek[-_.]?r1[-_.]?distill", ""),
    (r"deepseek[-_.]?v?4\.1", "deepseek_v41"),
    (r"deepseek[-_.]?v?4", "deepseek_v4"),
    (r"deepseek[-_.]?v?3\.2", "deepseek_v32"),
    (r"deepseek[-_.]?v?3\.1", "deepseek_v31"),
    (r"deepseek[-_.]?(v?3|r1)", "deepseek_v3"),
    (r"hermes", "hermes"),
    (r"xlam", "xlam"),
    (r"qwen[-_.]?3(\.\d)?[-_.]?coder|qwen[-_.]?3\.[5-9]", "qwen3_coder"),
    (r"qwen|qwq", "hermes"),
    (r"llama[-_.]?4", "llama4_pythonic"),
    (r"llama[-_.]?3", "llama3_json"),
    (r"gpt[-_.]?oss", "openai"),
    (r"glm[-_.]?4\.[7-9]|glm[-_.]?5", "glm47"),
    (r"glm[-_.]?4\.[56]", "glm45"),
    (r"kimi[-_.]?k3", "kimi_k3"),
    (r"kimi[-_.]?k2", "kimi_k2"),
    (r"granite[-_.]?20b.*function", "granite-20b-fc"),
    (r"granite[-_.]?4", "granite4"),
    (r"granite", "granite"),
    (r"phi[-_.]?4[-_.]?mini", "phi4_mini_json"),
    (r"functiongemma", "functiongemma"),
    (r"gemma[-_.]?4", "gemma4"),
    (r"magistral|devstral|ministral|mistral|mixtral", "mistral"),
    (r"jamba", "jamba"),
    (r"internlm", "internlm"),
    (r"hunyuan[-_.]?a13b", "hunyuan_a13b"),
    (r"minimax[-_.]?m3", "minimax_m3"),
    (r"minimax[-_.]?m2", "minimax_m2"),
    (r"ernie[-_.]?4\.5", "ernie45"),
    (r"seed[-_.]?oss", "seed_oss"),
    (r"step[-_.]?3[.p]5", "step3p5"),
    (r"step[-_.]?3", "step3"),
    (r"olmo[-_.]?3", "olmo3"),
    (r"longcat", "longcat"),
    (r"lfm2", "lfm2"),
    (r"mimo", "mimo"),
    (r"apertus", "apertus"),
    (r"gigachat[-_.]?3", "gigachat3"),
)

_TYPES: Final[Mapping[str, str]] = {
    "qwen2": "hermes",
    "qwen2_moe": "hermes",
    "qwen2_vl": "hermes",
    "qwen2_5_vl": "hermes",
    "qwen3": "hermes",
    "qwen3_moe": "hermes",
    "qwen3_next": "hermes",
    "llama4": "llama4_pythonic",
    "mistral3": "mistral",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "gpt_oss": "openai",
    "glm4_moe": "glm45",
    "kimi_k2": "kimi_k2",
    "granitemoehybrid": "granite4",
    "jamba": "jamba",
    "minimax_m2": "minimax_m2",
    "gemma4": "gemma4",
    "seed_oss": "seed_oss",
}
"""By ``model_type`` of config.json, for folders whose name tells nothing."""

_PLAIN_CLUES: Final[tuple[tuple[str, str], ...]] = (
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
)
"""By what the chat template writes around a call, and no other family does."""

_FAINT_CLUES: Final[tuple[tuple[str, str], ...]] = (
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
)
"""What several families write; the last resort."""

_COMPILED: Final = tuple((re.compile(pattern, re.IGNORECASE), name) for pattern, name in _FAMILIES)


def tool_parser(model: str, config: Mapping[str, Any]) -> str:
    """vLLM's name for the parser of a model; empty if none is known.

    Args:
        model: its name at the hub, or its folder.
        config: its config.json, and its chat template as ``chat_template``; may be empty.
    """
    for pattern, name in _COMPILED:
        if pattern.search(model.rstrip("/").rpartition("/")[2]):
            return name
    kind, template = config.get("model_type"), config.get("chat_template")
    plain = _clue(template, _PLAIN_CLUES)
    known = _TYPES.get(kind, "") if isinstance(kind, str) else ""
    return plain or known or _clue(template, _FAINT_CLUES)


def _clue(template: object, clues: Iterable[tuple[str, str]]) -> str:
    text = template if isinstance(template, str) else ""
    return next((name for clue, name in clues if clue in text), "")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder, and its ``chat_template``; empty if there is none."""
    config = _object(folder / "config.json")
    template = _text(folder / "chat_template.jinja")
    if not template:
        template = _object(folder / "tokenizer_config.json").get("chat_template", "")
    if template:
        config["chat_template"] = template
    return config


def family_parsers() -> frozenset[str]:
    """Every parser this table can choose; each must be known to vLLM."""
    tables = (*_FAMILIES, *_TYPES.items(), *_PLAIN_CLUES, *_FAINT_CLUES)
    return frozenset(name for _, name in tables if name)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
