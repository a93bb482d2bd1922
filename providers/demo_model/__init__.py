"""The demo model that ships with AIMO Node: a Llama of 1.3 M parameters, served as `tiny`.

What it can do and how it was made is in `MODEL_CARD.md`; prompts whose answers are checked
on the shipped file are in `prompts.json`; `DIGESTS` lists the sha256 of every model file.
"""

import hashlib
from importlib import resources
from pathlib import Path

from aimo_node.errors import EngineStartFailed

GGUF_FILE = "tiny-Q8_0.gguf"
DIGESTS_FILE = "DIGESTS"


def directory() -> Path:
    """The folder with the model: the GGUF file, and the safetensors with all that goes with them.

    Raises:
        EngineStartFailed: the package lies in an archive, where no engine can map the weights.
    """
    folder = resources.files(__name__)
    if not isinstance(folder, Path):
        raise EngineStartFailed(
            "the demo model is inside an archive and no engine can open it there: "
            "install aimo-node unpacked (pip does), or name another model"
        )
    return folder


def gguf_path() -> Path:
    """The weights as llama.cpp reads them (Q8_0).

    Raises:
        EngineStartFailed: the file is missing, or the package lies in an archive.
    """
    path = directory() / GGUF_FILE
    if not path.is_file():
        raise EngineStartFailed(f"{path} is missing: install aimo-node again")
    return path


def digests(folder: Path | None = None) -> dict[str, str]:
    """What `DIGESTS` promises: the sha256 in hexadecimal of every model file, by file name.

    Args:
        folder: a copy of the model; the shipped one if left out.

    Raises:
        EngineStartFailed: the list is missing or damaged, or the package lies in an archive.
    """
    path = (folder or directory()) / DIGESTS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    except (OSError, ValueError) as error:
        raise EngineStartFailed(f"{path} is missing or damaged: install aimo-node again") from error
    if GGUF_FILE not in listed:
        raise EngineStartFailed(f"{path} is cut short: install aimo-node again")
    return listed


def verify(folder: Path | None = None) -> None:
    """Check every model file against `DIGESTS`; reads 4 MB and blocks for some milliseconds.

    Args:
        folder: a copy of the model; the shipped one if left out.

    Raises:
        EngineStartFailed: a file is missing or is not the one that was shipped.
    """
    folder = folder or directory()
    for name, promised in digests(folder).items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EngineStartFailed(f"{folder / name} cannot be read: {error}") from error
        if found != promised:
            raise EngineStartFailed(
                f"{folder / name} is not the file that was shipped: install aimo-node again"
            )
