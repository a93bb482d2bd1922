"""The documentation says what the program has, and has nothing that the program has not.

Everything a reader can look up – flags, settings, metrics, codes – is compared with the code, every
link leads somewhere, every command line is one the program accepts, and the examples run.
"""

import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from aimo_node.cli.flags import SettingOption, load_from
from aimo_node.cli.main import COMMANDS, EXIT_CODES, aimo
from aimo_node.config.settings import KEYS, SECTIONS, variable_of
from aimo_node.domain.ids import PeerId
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.edge.problem import problem_of
from aimo_node.errors import CODED_ERRORS, CloseCode, ErrorCode
from aimo_node.telemetry.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
EXAMPLES = sorted((DOCS / "examples").glob("*.py")) + sorted((DOCS / "examples").glob("*.sh"))

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
READY_SECONDS = 30.0

EXAMPLE_PEER = PeerId("12D3KooWHSTewn5Y86PxNNnHkZRgBXpBHgPM1imU49neZ5Ba9wa4")
EXAMPLE_JOIN = format_join(JoinTarget((f"/ip4/192.0.2.1/tcp/4001/p2p/{EXAMPLE_PEER}",), b"\0" * 32))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def reference(name: str) -> str:
    return text_of(REFERENCE / name)


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a reference page, or of one section, without code marks."""
    name, _, anchor = page.partition("#")
    text = sections(reference(name))[anchor] if anchor else reference(name)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]


def table(text: str) -> list[list[str]]:
    """The cells of the rows about a file; those in code marks keep them, but for the first."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cells[0].strip().strip("`"), *map(str.strip, cells[1:])] for cells in rows]


def row_of(page: str, first: str) -> list[str]:
    found = [row for row in rows(page) if row[0] == first]
    assert len(found) == 1, f"{page} has {len(found)} rows for {first}"
    return found[0]


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level, by its anchor."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {anchor_of(parts[i]): parts[i + 1] for i in range(1, len(parts), 2)}


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    bare = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return bare.replace(" ", "-")


def all_commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(aimo)
    for name in COMMANDS:
        command = aimo.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield f"{name} {inner}", subcommand


def visible_flags(command: click.Command) -> Iterator[click.Option]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield parameter


def flags_in(text: str) -> set[str]:
    """Flags that begin a table row."""
    return set(re.findall(r"^\| `(--[a-z-]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", [name for name, _ in all_commands()])
def test_a_command_is_documented_with_exactly_its_flags(name: str) -> None:
    """A group of flags that several commands share is written once and linked to."""
    found = sections(reference("commands.md"))
    own = found[anchor_of(f"aimo {name}")]
    shared = [found[anchor] for anchor in re.findall(r"\(#(flags-[\w-]+)\)", own)]
    documented = flags_in(own).union(*map(flags_in, shared))
    command = dict(all_commands())[name]
    assert documented == {flag.opts[0] for flag in visible_flags(command)}


def test_only_real_commands_are_documented() -> None:
    headings = re.findall(r"^## `aimo ([\w -]+)`$", reference("commands.md"), re.MULTILINE)
    assert headings == [name for name, _ in all_commands()]


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_is_documented_with_variable_flag_and_default(key: str) -> None:
    section, _, name = key.partition(".")
    row = row_of("configuration.md", key)
    assert row[1] == variable_of(key)
    flags = {
        flag.opts[0]
        for _, command in all_commands()
        for flag in visible_flags(command)
        if isinstance(flag, SettingOption) and flag.setting == key
    }
    assert {row[2]} == flags
    default = SECTIONS[section].model_fields[name].default
    if isinstance(default, bool):
        assert row[3] == str(default).lower()
    elif isinstance(default, int | float):
        assert row[3] == f"{default:g}"
    elif default and isinstance(default, str):
        assert row[3] == default


def test_only_real_settings_are_documented() -> None:
    documented = {row[0] for row in rows("configuration.md") if "AIMO_" in row[1]}
    assert documented == set(KEYS)
    variables = set(re.findall(r"AIMO_[A-Z]+__[A-Z_]+", "".join(map(text_of, PAGES))))
    assert variables <= {*(variable_of(key) for key in KEYS), "AIMO_SECTION__KEY"}


def test_every_metric_is_documented_with_kind_and_labels() -> None:
    for metric in METRICS:
        row = row_of("metrics.md", metric.name)
        assert row[1] == metric.kind
        assert row[2] == (", ".join(metric.labels) or "–")
    documented = {row[0] for row in rows("metrics.md") if row[0].startswith("aimo_")}
    assert documented == {metric.name for metric in METRICS}


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_code_is_documented_with_its_status(code: ErrorCode) -> None:
    error = CODED_ERRORS[code]
    problem = problem_of(error("said"))
    status, again = str(error.http_status), "yes" if error.retryable else "no"
    row = row_of("errors.md#answers-of-the-http-api", code.name)
    assert row[1:6] == [str(int(code)), status, problem.code, problem.type, again]


@pytest.mark.parametrize("code", CloseCode)
def test_a_close_code_is_documented(code: CloseCode) -> None:
    assert row_of("errors.md#close-codes-of-a-link", code.name)[1] == str(int(code))


@pytest.mark.parametrize("code", EXIT_CODES)
def test_an_exit_code_is_documented(code: int) -> None:
    assert row_of("exit-codes.md", str(code))[1].startswith(EXIT_CODES[code])


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        prose = FENCE.sub("", text_of(page))
        for target in LINK.findall(prose):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for source, target in links():
        if source != page:
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{name_of(page)}: {target}"
        if anchor and goal.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", text_of(goal), flags=re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{name_of(page)}: {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        goals = [
            (source.parent / target.partition("#")[0]).resolve()
            for source, target in links()
            if source == page and target.partition("#")[0]
        ]
        waiting += [goal for goal in goals if goal.suffix == ".md" and goal.exists()]
    assert not [name_of(page) for page in PAGES if page not in seen]


def test_cited_tests_exist() -> None:
    """A claim that names its test must not outlive it."""
    for page in PAGES:
        for file, function in TEST_NAME.findall(text_of(page)):
            path = ROOT / file
            assert path.is_file(), f"{name_of(page)}: {file}"
            if function:
                assert f"def {function}(" in text_of(path), f"{name_of(page)}: {file}::{function}"


def test_every_fix_of_libp2p_is_listed_with_the_test_that_fails_without_it() -> None:
    page = sections(text_of(DOCS / "explanation" / "libp2p-fixes.md"))
    folder = ROOT / "aimo_node" / "mesh" / "fixes"
    files = {path.name: text_of(path) for path in folder.glob("*.py") if path.stem != "__init__"}
    faults = {name for name, text in files.items() if text.startswith('"""Fault: ')}
    listed = {
        section: {row[0]: row[-1] for row in table(page[section])}
        for section in ("faults", "parts")
    }
    assert listed["faults"].keys() == faults
    assert listed["parts"].keys() == files.keys() - faults
    for name, guards in (*listed["faults"].items(), ("version.py", listed["parts"]["version.py"])):
        assert TEST_NAME.search(guards), f"{name} is guarded by nothing"


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `aimo …` in a block of shell, or behind a `$` in a block that shows a session."""
    for page in PAGES:
        for language, block in FENCE.findall(text_of(page)):
            for line in block.replace("\\\n", " ").splitlines():
                if language != "sh" and not line.startswith("$ "):
                    continue
                yield from ((name_of(page), part) for part in _aimo_parts(line))


def _aimo_parts(line: str) -> Iterator[list[str]]:
    known = line.replace("aimo:…", EXAMPLE_JOIN).replace("12D3KooW…", EXAMPLE_PEER)
    lexer = shlex.shlex(known.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "|"]:
        if word[0] in "|&;<>":
            if words and Path(words[0]).name == "aimo":
                yield words[1:]
            words = []
        elif words or "=" not in word or word.startswith("-"):
            words.append(word)


def _parse(arguments: list[str]) -> click.Context | None:
    """The context of the command, as the program makes it; None for `--version` and the like."""
    try:
        group = aimo.make_context("aimo", list(arguments))
        name, command, rest = aimo.resolve_command(group, [*group._protected_args, *group.args])
        assert command is not None
        context = command.make_context(name, rest, parent=group)
        if isinstance(command, click.Group):
            inner = [*context._protected_args, *context.args]
            if not inner and command.invoke_without_command:
                return context
            name, command, rest = command.resolve_command(context, inner)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    except click.exceptions.Exit:
        return None
    return context


@pytest.mark.parametrize("page", sorted({page for page, _ in command_lines()}))
def test_command_lines_are_accepted(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags and values both; files that they name need not be there."""
    for variable in [name for name in os.environ if name.startswith("AIMO_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for source, arguments in command_lines():
        if source != page:
            continue
        context = _parse(arguments)
        settings = context is not None and any(
            isinstance(parameter, SettingOption) for parameter in context.command.params
        )
        if context is not None and settings and not context.params.get("config_file"):
            load_from(context)


def folders_in(block: str, parent: str) -> set[str]:
    """Folders listed below `parent/` in a tree that indents by two spaces."""
    inside = re.search(rf"^{parent}/.*\n((?:  .*\n)*)", block, flags=re.MULTILINE)
    assert inside is not None
    return set(re.findall(r"^  ([\w.-]+)/", inside[1], flags=re.MULTILINE))


def subfolders(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/*") if path.name != "__pycache__"} - {
        "__pycache__"
    }


@pytest.mark.parametrize("parent", ["aimo_node", "providers", "tests", "docs", "scripts"])
def test_the_architecture_shows_the_folders_there_are(parent: str) -> None:
    page = text_of(DOCS / "explanation" / "architecture.md")
    tree = next(block for _, block in FENCE.findall(page) if block.startswith("aimo_node/"))
    assert folders_in(tree, parent) == subfolders(ROOT / parent)


@pytest.fixture(scope="module")
def edge_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of an `aimo up` with the demo model."""
    folder = tmp_path_factory.mktemp("up")
    arguments = [
        *(sys.executable, "-m", "aimo_node", "up", "--http", "127.0.0.1:0", "--ready-json"),
        *("--state", str(folder / "state"), "--config", os.devnull, "--watch-stdin"),
    ]
    environment = {name: value for name, value in os.environ.items() if "AIMO_" not in name}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        line = process.stdout.readline() if ready else b""
        assert line, (folder / "log").read_text()
        url = json.loads(line)["http"]
        _wait_for_model(url)
        yield f"{url}/v1"
    finally:
        process.terminate()
        try:
            process.communicate(timeout=READY_SECONDS)
        finally:
            process.kill()
            process.communicate()


def _wait_for_model(url: str) -> None:
    """Until the edge has heard of its own provider, from the directory that comes once a second."""
    deadline = time.monotonic() + READY_SECONDS
    command = [sys.executable, "-m", "aimo_node", "models", "--json", "--edge", url]
    while True:
        answer = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
        models: dict[str, Any] = json.loads(answer.stdout)
        if models["data"]:
            return
        assert time.monotonic() < deadline, "the model did not appear"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_and_gets_a_real_answer(example: Path, edge_url: str) -> None:
    runner = ["sh"] if example.suffix == ".sh" else [sys.executable]
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    done = subprocess.run(
        [*runner, str(example), edge_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "7" in done.stdout


def test_the_engine_of_the_guide_passes_the_suite() -> None:
    """As its reader runs it: pytest on the folder, with the engine where Python finds it."""
    folder = DOCS / "examples" / "engine-plugin"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))},
    )
    assert done.returncode == 0, done.stdout
