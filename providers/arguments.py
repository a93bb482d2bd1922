"""Reads an engine's own settings, ``--engine-args "--tokens 200 …"``; unknown ones are refused."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from aimo_node.errors import ConfigError
from aimo_node.ports.engine import EngineSettings

_UNKNOWN: Final = "unrecognized arguments: "


class EngineArguments(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` in place of ending the program.

    Args:
        engine: name of the engine, for messages.
    """

    def __init__(self, engine: str) -> None:
        super().__init__(prog=f"engine {engine}", add_help=False, allow_abbrev=False)
        self._engine = engine

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The settings in `arguments`.

        Raises:
            ConfigError: unknown or malformed; the message names the nearest known flag.
        """
        return self.parse_args(list(arguments))

    def error(self, message: str) -> NoReturn:
        """Called by argparse with one sentence."""
        raise ConfigError(f"--engine-args of {self._engine}: {message}{self._hint(message)}")

    def _hint(self, message: str) -> str:
        known = sorted(flag for action in self._actions for flag in action.option_strings)
        if not message.startswith(_UNKNOWN):
            return ""
        unknown = message.removeprefix(_UNKNOWN).split()[0].split("=")[0]
        nearest = difflib.get_close_matches(unknown, known, n=1)
        listed = f"known: {', '.join(known) or 'none'}"
        return f" (did you mean {nearest[0]}? {listed})" if nearest else f" ({listed})"


def refuse_upstream_settings(engine: str, settings: EngineSettings) -> None:
    """For an engine that runs here: refuse what only one with an upstream would heed.

    Raises:
        ConfigError: names the flag.
    """
    said = {
        "--endpoint": settings.endpoint,
        "--api-key-file": settings.api_key_file,
        "--api-key-env": settings.api_key_env,
        "--models": settings.models,
    }
    for flag, value in said.items():
        if value:
            raise ConfigError(
                f"the {engine} engine has no use for {flag}: that is for engines which publish a "
                "server that runs already, such as --engine openai"
            )


def number_between(low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`, both included."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return read


def integer_between(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`, both included."""

    def read(text: str) -> int:
        if not (text.lstrip("-").isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read
