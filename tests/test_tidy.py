"""The house rules a program can check: sizes, names, docstrings, silent handlers, the top level.

An exception is granted by an entry in `GRANTED`, with its present size. The list may shrink;
an entry that is no longer needed, or a size that grew, fails the test as well.
"""

import ast
import fnmatch
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("aimo_node", "providers", "tests", "benchmarks", "scripts")

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
CLASS_LINES_MAX = 350

# "path" or "path::name" -> lines today.
GRANTED: dict[str, int] = {}

BANNED_MODULE_NAMES = frozenset(
    {"utils", "helpers", "common", "misc", "base", "core", "manager", "types"}
)

TOP_LEVEL = frozenset(
    {
        ".ci",
        ".dockerignore",
        ".git",
        ".gitattributes",
        ".github",
        ".gitignore",
        ".importlinter",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "SECURITY.md",
        "aimo_node",
        "benchmarks",
        "docker-compose.yml",
        "docs",
        "providers",
        "pyproject.toml",
        "scripts",
        "tests",
    }
)

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def lines_without_docstring(definition: Definition) -> int:
    """Physical lines from `def` or `class` to the end; decorators and the docstring are free."""
    assert definition.end_lineno is not None
    lines = definition.end_lineno - definition.lineno + 1
    first = definition.body[0]
    if ast.get_docstring(definition, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def definitions(kind: type | tuple[type, ...]) -> Iterator[tuple[str, Definition]]:
    for path in python_files():
        for node in ast.walk(parse(path)):
            if isinstance(node, kind):
                assert isinstance(node, Definition)
                yield f"{name_of(path)}::{node.name}", node


def long_files() -> dict[str, int]:
    sizes = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in python_files()}
    return {name: lines for name, lines in sizes.items() if lines > FILE_LINES_MAX}


def long_functions() -> dict[str, int]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    sizes = {name: lines_without_docstring(node) for name, node in definitions(kinds)}
    return {name: lines for name, lines in sizes.items() if lines > FUNCTION_LINES_MAX}


def long_classes() -> dict[str, int]:
    sizes = {name: lines_without_docstring(node) for name, node in definitions(ast.ClassDef)}
    return {name: lines for name, lines in sizes.items() if lines > CLASS_LINES_MAX}


@pytest.mark.parametrize("too_long", [long_files, long_functions, long_classes])
def test_nothing_exceeds_its_size_limit(too_long: Callable[[], dict[str, int]]) -> None:
    found = too_long()
    over = {name: lines for name, lines in found.items() if lines > GRANTED.get(name, 0)}
    assert not over, "split these, or shrink them back to what was granted"


def test_every_granted_exception_is_still_needed() -> None:
    found = long_files() | long_functions() | long_classes()
    assert {name: lines for name, lines in GRANTED.items() if found.get(name) != lines} == {}


def test_no_module_is_a_drawer_for_everything() -> None:
    named = [path for path in python_files() if path.stem in BANNED_MODULE_NAMES]
    named += [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*/")
        if path.name in BANNED_MODULE_NAMES
    ]
    assert [name_of(path) for path in named] == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        name_of(path)
        for path in python_files()
        if path.read_text("utf-8").strip() and not ast.get_docstring(parse(path))
    ]
    assert silent == []


def test_no_package_imports_its_own_modules() -> None:
    """A package that re-exports its heavy modules drags them into every import."""
    eager = []
    for path in python_files():
        if path.name == "__init__.py":
            package = re.escape(name_of(path.parent).replace("/", "."))
            own = re.compile(rf"(from \.|(from|import) {package}\b)")
            statements = [ast.unparse(node) for node in parse(path).body]
            eager += [f"{name_of(path)}: {line}" for line in statements if own.match(line)]
    assert eager == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"})
        for name in names
    )


def test_no_broad_handler_is_silent() -> None:
    silent = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ExceptHandler)
        and is_broad(node)
        and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
    ]
    assert silent == []


def test_every_deferred_task_names_its_issue() -> None:
    word = "TO" + "DO"
    deferred = re.compile(rf"\b(?:{word}|FIX" + r"ME|XX" + r"X)\b(?!\(#\d+\))")
    found = [
        f"{name_of(path)}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if "#" in line and deferred.search(line.partition("#")[2])
    ]
    assert found == [], f"write {word}(#12) with the number of an issue"


def test_top_level_holds_only_what_is_listed() -> None:
    """The root of a repository is where attics begin."""
    ignored = [
        line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if line.strip("/")
    ]
    unlisted = [
        path.name
        for path in ROOT.iterdir()
        if path.name not in TOP_LEVEL
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored)
    ]
    assert unlisted == []


LOCK_ENTRY = re.compile(
    r"[a-z0-9.-]+==[^\s;]+"  # the package and its one version
    r"(?: ; [^\\]+)?"  # where it is needed
    r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
)


@pytest.mark.parametrize("lock", ["build", "runtime", "dev", "vllm"])
def test_lock_pins_everything_by_hash_and_names_no_registry(lock: str) -> None:
    text = (ROOT / "scripts" / "locks" / f"{lock}.txt").read_text()
    header, _, body = text.partition("\n")
    assert header.startswith("#")
    entries = re.split(r"\n(?=[a-z0-9])", body.strip())
    assert [entry for entry in entries if not LOCK_ENTRY.fullmatch(entry)] == []


def test_locks_cover_what_the_project_asks_for() -> None:
    """A dependency added to pyproject.toml without a new lock would not be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for lists, locks in (
        (project["project"]["dependencies"], ["runtime"]),
        (project["dependency-groups"]["dev"], ["runtime", "dev"]),
    ):
        locked = "".join((ROOT / "scripts" / "locks" / f"{lock}.txt").read_text() for lock in locks)
        names = [re.match(r"[A-Za-z0-9.-]+", requirement) for requirement in lists]
        assert [name[0] for name in names if name and f"\n{name[0]}==" not in locked] == []
