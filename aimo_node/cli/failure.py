"""What a command says when it cannot go on: one sentence, exit code 1, no traceback."""

from __future__ import annotations

from typing import Any

import click


class Failure(click.ClickException):
    """Ends the program with code 1 and its message on stderr."""

    def show(self, file: Any = None) -> None:  # noqa: ANN401 (click's signature)
        """Print it the way the program prints all its errors."""
        click.echo(f"aimo: {self.message}", file=file, err=file is None)
