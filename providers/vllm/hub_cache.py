"""Finds a model's files in the cache of the Hugging Face hub, without the hub's library."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import trio

from providers.vllm.arguments import VllmPlan, option

FILES_MAX: Final = 10_000
"""Of one model; the largest have some two hundred."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


async def downloaded_bytes(plan: VllmPlan) -> int:
    """How much of the model has come so far, files that are still on the way included."""
    return await trio.to_thread.run_sync(_bytes_in, repository(plan.model, plan) / "blobs")


def model_folder(plan: VllmPlan) -> Path | None:
    """Where the model's files lie; None if that cannot be known."""
    if plan.folder is not None:
        return plan.folder if plan.folder.is_dir() else None
    return snapshot(plan.model, plan, option(plan, "--revision") or "main")


def snapshot(name: str, plan: VllmPlan, revision: str = "main") -> Path | None:
    """The folder of one revision of something at the hub; None if it is not here."""
    folder = repository(name, plan)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    found = folder / "snapshots" / commit
    return found if _COMMIT.fullmatch(commit) and found.is_dir() else None


def repository(name: str, plan: VllmPlan) -> Path:
    """Where the hub's library keeps all that it has of a model; it may not exist."""
    own = option(plan, "--download-dir")
    return (Path(own) if own else cache_folder()) / f"models--{name.replace('/', '--')}"


def cache_folder() -> Path:
    """Where the hub's library keeps everything, by its own variables."""
    variables = os.environ
    if said := variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE"):
        return Path(said).expanduser()
    general = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{general}/huggingface"
    return Path(home).expanduser() / "hub"


def _bytes_in(folder: Path) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number >= FILES_MAX:
                    break
                total += entry.stat(follow_symlinks=False).st_size
    except OSError:
        return total
    return total
