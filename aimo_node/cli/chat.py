"""`aimo chat`: a conversation in the terminal, or one line in and one answer out in a pipe."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Final

import click

from aimo_node.cli.edge_client import EdgeClient, EdgeError, edge_flag, key_file_flag, read_key

MESSAGES_MAX: Final = 200
"""A conversation longer than this forgets its beginning; few models hold more."""


@click.command("chat")
@click.argument("model")
@edge_flag
@key_file_flag
def command(model: str, *, edge: str, key_file: str | None) -> int:
    """Talk to MODEL in the terminal.

    Ctrl-C stops an answer, Ctrl-D ends the conversation. Without a terminal every line of stdin
    is a question and its answer goes to stdout.

    \b
    Example:
      aimo chat tiny
      echo 'What is 3+4?' | aimo chat tiny --edge http://127.0.0.1:8000
    """
    conversation = Conversation(EdgeClient(edge, read_key(key_file)), model)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a pipe may carry what this terminal does not
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(conversation, f"{model} at {edge}")
        return 0
    for line in sys.stdin:
        if line.strip():
            conversation.ask(line.strip())
    return 0


def _talk(conversation: Conversation, title: str) -> None:
    """Question and answer until Ctrl-D."""
    with contextlib.suppress(ImportError):  # a Python without it has no line editing, no more
        import readline  # noqa: F401 (gives `input` editing and history)
    click.echo(f"{title} – Ctrl-C stops an answer, Ctrl-D ends")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\nCtrl-D ends")
            continue
        if not question:
            continue
        try:
            conversation.ask(question)
        except KeyboardInterrupt:
            click.echo(" (stopped)")
        except EdgeError as error:
            click.echo()
            error.show()


class Conversation:
    """The messages so far, and how the next question is asked."""

    def __init__(self, client: EdgeClient, model: str) -> None:
        self._client = client
        self._model = model
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str) -> None:
        """Send a question and print its answer as it comes.

        An answer that is stopped stays in the conversation as far as it got; a question that
        got no answer at all leaves no trace.

        Raises:
            EdgeError: refused, or the answer broke off.
            KeyboardInterrupt: the person had enough.
        """
        self.messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            with self._client.stream_chat(self._model, self.messages) as answer:
                for piece in answer:
                    pieces.append(piece)
                    click.echo(piece, nl=False)
            click.echo()
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.messages.pop()
            del self.messages[: max(0, len(self.messages) - MESSAGES_MAX)]
