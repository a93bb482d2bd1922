"""Checks of the program and its configuration: settings, versions, open files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aimo_node import __version__
from aimo_node.assembly.doctor.check import Case, Check
from aimo_node.assembly.doctor.finding import Finding, Layer, ok, problem, warning
from aimo_node.assembly.doctor.running_node import NODE, roles_running
from aimo_node.config.join_file import join_file_of, read_join_file
from aimo_node.config.settings import Settings
from aimo_node.config.values import HTTP_OFF
from aimo_node.domain.ids import Role
from aimo_node.domain.join import JoinTarget, parse_join
from aimo_node.errors import ConfigError
from aimo_node.mesh.fixes.version import LIBP2P_VERSION

PYTHON_MIN: Final = (3, 11)
OPEN_FILES_MIN: Final = 1024
"""With less a node cannot serve two hundred links and their consumers."""


@dataclass(frozen=True, slots=True)
class Configured:
    """What the configuration says.

    Attributes:
        error: why it cannot be used; empty if it can.
        settings: with the defaults of `roles` filled in; None if there is an error.
        targets: whom to join.
    """

    error: str = ""
    settings: Settings | None = None
    roles: Role = Role.NONE
    file: Path | None = None
    targets: tuple[JoinTarget, ...] = ()

    @property
    def usable(self) -> Settings:
        """The settings, for checks that need this one."""
        if self.settings is None:
            raise ValueError("there are no settings")
        return self.settings


async def _read_configuration(case: Case) -> Configured:
    try:
        loaded = case.subject.load()
        node = case.glimpse(NODE)
        roles = roles_running(node) or case.subject.roles or _guess(loaded.settings)
        settings = _for_roles(loaded.settings, roles, is_running=bool(roles_running(node)))
        targets = tuple(parse_join(_join_text(text)) for text in settings.mesh.join)
    except ConfigError as error:
        return Configured(str(error))
    return Configured("", settings, roles, loaded.file, targets)


def _for_roles(settings: Settings, roles: Role, *, is_running: bool) -> Settings:
    """A provider that runs tells of its engines itself: they need not be named to the doctor.

    Raises:
        ConfigError: something is missing or contradicts.
    """
    try:
        return settings.for_roles(roles)
    except ConfigError:
        if not is_running or Role.PROVIDER not in roles or settings.provider.engine:
            raise
        return settings.for_roles(roles & ~Role.PROVIDER or Role.RELAY)


def _guess(settings: Settings) -> Role:
    """What a node with these settings is most likely meant to do."""
    if settings.provider.engine:
        return Role.PROVIDER
    return Role.RELAY if settings.edge.http == HTTP_OFF else Role.EDGE


def _join_text(text: str) -> str:
    path = join_file_of(text)
    if path is None:
        return text
    found = read_join_file(path)
    if not found:
        raise ConfigError(
            f"no join string is in {path}: start the relay with --join-file and this path"
        )
    return found


def judge_configuration(seen: Configured) -> list[Finding]:
    """A wrong setting is told in the words of whoever refused it."""
    if seen.error:
        do = "mend that; `aimo config show` says where each setting comes from"
        return [problem(Layer.CONFIG, seen.error, do)]
    roles = ", ".join(seen.roles.names)
    where = str(seen.file) if seen.file else "no file; flags, environment and defaults"
    return [ok(Layer.CONFIG, f"{where}; as {roles}")]


CONFIGURATION: Final = Check(
    "config", Layer.CONFIG, _read_configuration, judge_configuration, follows=(NODE,)
)


@dataclass(frozen=True, slots=True)
class Versions:
    """What is installed."""

    python: tuple[int, ...]
    libp2p: str | None
    aimo: str = __version__


async def _read_versions(case: Case) -> Versions:
    return Versions(case.machine.python, case.machine.version_of("libp2p"))


def judge_versions(seen: Versions) -> list[Finding]:
    """Python has a lower bound, libp2p one version only."""
    python = ".".join(map(str, seen.python))
    if seen.python < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        do = f"install Python {wanted} or newer and aimo-node for it"
        return [problem(Layer.VERSION, f"Python {python} is older than {wanted}", do)]
    if seen.libp2p != LIBP2P_VERSION:
        found = f"libp2p {seen.libp2p} is installed" if seen.libp2p else "libp2p is not installed"
        do = f"run: pip install libp2p=={LIBP2P_VERSION}"
        return [problem(Layer.VERSION, f"{found}; this aimo works with {LIBP2P_VERSION}", do)]
    return [ok(Layer.VERSION, f"aimo {seen.aimo}, Python {python}, libp2p {seen.libp2p}")]


VERSIONS: Final = Check("version", Layer.VERSION, _read_versions, judge_versions)


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """How many files may be open, and how many a node wants."""

    allowed: int
    wanted: int


async def _read_open_files(case: Case) -> OpenFiles:
    return OpenFiles(case.machine.open_files_max(), case.subject.open_files)


def judge_open_files(seen: OpenFiles) -> list[Finding]:
    """A node raises its own limit, but only to the hard one."""
    do = f"raise the hard limit to {seen.wanted}: LimitNOFILE= in systemd, or `ulimit -Hn`"
    said = f"at most {seen.allowed} files and sockets may be open, {seen.wanted} are wanted"
    if seen.allowed < OPEN_FILES_MIN:
        return [problem(Layer.LIMITS, said, do)]
    if seen.allowed < seen.wanted:
        return [warning(Layer.LIMITS, said, do)]
    return [ok(Layer.LIMITS, f"{seen.wanted} open files and sockets are allowed")]


OPEN_FILES: Final = Check("files", Layer.LIMITS, _read_open_files, judge_open_files)
