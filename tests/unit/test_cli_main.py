"""The program as a whole: commands, help, exit codes, and what may not be imported early."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from aimo_node import __version__
from aimo_node.cli import main as program
from aimo_node.errors import ConfigError, EngineStartFailed, JoinFailed


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and sub-command with its full name."""
    context = click.Context(program.aimo)
    for name in program.COMMANDS:
        command = program.aimo.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield f"{name} {inner}", subcommand


def test_the_commands_are_those_of_the_contract() -> None:
    assert [name for name, _ in all_commands()] == [
        *("up", "relay", "provider", "provider pause", "provider resume", "provider who"),
        *("edge", "demo", "chat", "models", "peers"),
        *("peers ban", "peers allow", "peers list", "invite"),
        *("engine", "engine status", "engine load", "engine unload"),
        *("auth", "auth copilot", "auth status", "auth logout", "check-usage"),
        *("id", "config", "config show", "doctor"),
    ]


def test_no_summary_of_a_command_is_cut_off_in_a_terminal_of_80_columns() -> None:
    for group in (program.aimo, *(command for _, command in all_commands())):
        if isinstance(group, click.Group):
            help_text = group.get_help(click.Context(group, terminal_width=80))
            assert "..." not in help_text.partition("Commands:")[2]


def test_every_help_has_an_example_and_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in all_commands():
        assert program.run([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert "Example:" in text, name
        assert f"aimo {name}" in text.partition("Example:")[2], name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1] in text, (name, parameter.name)
                assert parameter.help or parameter.show_default, (name, parameter.name)


def test_every_command_that_lists_speaks_json() -> None:
    listing = {"models", "peers", "id", "config show", "auth status", "check-usage", "doctor"}
    listing |= {"provider pause", "provider resume", "provider who"}
    listing |= {"peers list", "invite"}
    for name, command in all_commands():
        if name in listing:
            assert any("--json" in parameter.opts for parameter in command.params), name


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["--version"]) == 0
    assert capsys.readouterr().out == f"aimo {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["provder"], "Did you mean 'provider'?"),
        (["relay", "--lisen", "x"], "--listen"),
        (["provider", "--requests-max", "many"], "--requests-max"),
        (["relay", "--log-level", "loud"], "--log-level"),
        (["chat"], "MODEL"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_right(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("fix it"), 2),
        (JoinFailed("fix it"), 3),
        (EngineStartFailed("fix it"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_one_sentence_and_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command("fail")
    def fail() -> None:
        raise error

    assert program.run([], fail) == code
    assert capsys.readouterr().err == ("\n" if code == 130 else "aimo: fix it\n")


def test_exit_codes_are_described() -> None:
    assert set(program.EXIT_CODES) == {0, 1, 2, 3, 4, 130}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["provider", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    """`aimo --version` under 150 ms stands or falls with this."""
    heavy = "pydantic trio structlog rich libp2p quart hypercorn msgspec cryptography httpx2"
    code = (
        "import sys; from aimo_node.cli.main import run; "
        f"code = run({arguments!r}); "
        f"print([name for name in {heavy.split()!r} if name in sys.modules], file=sys.stderr); "
        "sys.exit(code)"
    )
    result = python("-c", code)
    assert result.returncode == 0
    assert result.stderr == "[]\n"


def test_version_takes_less_than_150_ms_of_cpu() -> None:
    """CPU time, best of five: wall time on a busy machine says nothing."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "aimo_node", "--version").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    assert min(seconds() for _ in range(5)) < 0.15


def test_output_into_a_pipe_without_a_reader_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "aimo_node", "config", "show"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert result.stderr == ""
