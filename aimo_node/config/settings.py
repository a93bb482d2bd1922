"""Every setting: its key, type, default and meaning. `loading.load_settings` fills the tree."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from aimo_node.config.places import default_state_folder
from aimo_node.domain.ids import Role
from aimo_node.domain.join import parse_join
from aimo_node.errors import ConfigError

HTTP_OFF: Final = "off"
ALL_ROLES: Final = Role.RELAY | Role.PROVIDER | Role.EDGE
"""What `aimo up` is; it stays on loopback although it is a relay too."""

_RELAY_LISTEN: Final = "/ip4/0.0.0.0/tcp/4001"
_JOINED_LISTEN: Final = "/ip4/0.0.0.0/tcp/0"
_LOOPBACK_LISTEN: Final = "/ip4/127.0.0.1/tcp/0"
_EDGE_HTTP: Final = "127.0.0.1:8000"
_LIST_MAX: Final = 64
"""Longest list in a configuration; a longer one is a mistake."""


def split_host_port(text: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it has another form, or the port is not 0–65535.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("expected HOST:PORT such as 127.0.0.1:8000, or off")
    if ":" in host and not text.startswith("["):
        raise ValueError("expected an IPv6 host in brackets, such as [::1]:8000")
    return host, int(port)


def _as_path(value: object) -> object:
    if isinstance(value, str):
        if not value:
            raise ValueError("expected a path")
        return Path(value).expanduser()
    return value


def _as_texts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _as_arguments(value: object) -> object:
    return tuple(shlex.split(value)) if isinstance(value, str) else _as_texts(value)


def _as_lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _check_http(text: str) -> str:
    if text and text != HTTP_OFF:
        split_host_port(text)
    return text


def _check_joins(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not text.startswith("@"):
            try:
                parse_join(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
    return texts


def _check_listen(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not text.startswith("/"):
            raise ValueError(f"expected a multiaddr such as {_RELAY_LISTEN}, got {text!r}")
    return texts


PathValue = Annotated[Path, BeforeValidator(_as_path)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts), Field(max_length=_LIST_MAX)]


class Section(BaseModel):
    """One table of `aimo.toml`; values never change after loading."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )


class NodeSettings(Section):
    """What every node has, whatever its roles."""

    state: PathValue = Field(
        default_factory=lambda: default_state_folder(os.environ),
        description="Folder for identity, address book, database, sockets and logs.",
    )
    grace_seconds: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long running requests may still take after SIGTERM.",
    )

    @property
    def identity_file(self) -> Path:
        """Where the node's private key lies; made at the first start."""
        return self.state / "identity.pem"


class MeshSettings(Section):
    """How this node finds and admits others."""

    join: Annotated[Texts, AfterValidator(_check_joins)] = Field(
        default=(),
        description="Whom to join: join strings, @FILE holding one, or multiaddrs with /p2p/PEER.",
    )
    secret_file: PathValue | None = Field(
        default=None,
        description="File with the closed mesh's secret: 64 hexadecimal characters, mode 0600.",
    )
    open: bool = Field(default=False, description="Admit every node: no mesh secret at all.")
    listen: Annotated[Texts, AfterValidator(_check_listen)] = Field(
        default=(),
        description=(
            f"libp2p addresses to listen on; port 0 picks one. Relay: {_RELAY_LISTEN}; others:"
            f" {_JOINED_LISTEN} when they join a mesh, {_LOOPBACK_LISTEN} when not."
        ),
    )

    @model_validator(mode="after")
    def _open_or_secret(self) -> MeshSettings:
        if self.open and self.secret_file is not None:
            raise ValueError("an open mesh has no secret: drop mesh.open or mesh.secret_file")
        return self


class ProviderSettings(Section):
    """Which engine serves which model."""

    engine: str = Field(
        default="", description="Engine by name: llama, openai, echo or a plug-in's. up: llama."
    )
    model: str = Field(
        default="", description="Model the engine is to serve; llama without one serves `tiny`."
    )
    endpoint: str = Field(
        default="", description="URL of a server that already runs, for engines that use one."
    )
    api_key_file: PathValue | None = Field(
        default=None, description="File with the upstream's API key; it never leaves the provider."
    )
    engine_args: Annotated[
        tuple[str, ...], BeforeValidator(_as_arguments), Field(max_length=_LIST_MAX)
    ] = Field(default=(), description="The engine's own arguments, split as a shell would.")
    requests_max: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Requests served at the same time; 0 leaves it to the engine.",
    )
    served_name: str = Field(
        default="", description="Name of the model in the mesh, if not the engine's own."
    )
    region: str = Field(
        default="", max_length=64, description="Where the provider stands, in your own words."
    )


class EdgeSettings(Section):
    """The HTTP door."""

    http: Annotated[str, AfterValidator(_check_http)] = Field(
        default="",
        description=(
            f"HOST:PORT of the HTTP API, or off. Edge and up: {_EDGE_HTTP}; relay and provider:"
            " off, and when set health and metrics only."
        ),
    )
    client_keys_file: PathValue | None = Field(
        default=None, description="File with the keys consumers may use, one per line."
    )
    tls_cert: PathValue | None = Field(
        default=None, description="Certificate chain (PEM) for HTTPS; needs edge.tls_key."
    )
    tls_key: PathValue | None = Field(
        default=None, description="Private key (PEM) for HTTPS; needs edge.tls_cert."
    )
    behind_proxy: bool = Field(
        default=False, description="The promise that a reverse proxy in front does HTTPS."
    )
    allowed_hosts: Texts = Field(
        default=(), description="Further values of the Host header to answer to."
    )
    request_deadline_seconds: float = Field(
        default=600.0, gt=0, le=86_400, description="Longest time one request may take."
    )

    @model_validator(mode="after")
    def _tls_is_a_pair(self) -> EdgeSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("HTTPS needs both edge.tls_cert and edge.tls_key")
        return self

    @property
    def http_bind(self) -> tuple[str, int] | None:
        """Host and port to bind, or None for no HTTP door."""
        return None if self.http in {"", HTTP_OFF} else split_host_port(self.http)


class LogSettings(Section):
    """What is written to stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_as_lower)] = (
        Field(default="info", description="Least important level that is logged.")
    )
    format: Annotated[Literal["text", "json"], BeforeValidator(_as_lower)] = Field(
        default="text", description="text for people, json for machines."
    )


class Settings(BaseSettings):
    """The whole tree, frozen. Each package gets only the section it needs."""

    model_config = SettingsConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True
    )

    node: NodeSettings = Field(default_factory=NodeSettings)
    mesh: MeshSettings = Field(default_factory=MeshSettings)
    provider: ProviderSettings = Field(default_factory=ProviderSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917 (the library's own signature)
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes; `loading` adds environment and file."""
        return (init_settings,)

    def for_roles(self, roles: Role) -> Settings:
        """The same settings with the defaults that depend on what the node does filled in."""
        mesh, provider, edge = self.mesh, self.provider, self.edge
        if not mesh.listen:
            mesh = mesh.model_copy(update={"listen": (_default_listen(roles, mesh),)})
        if not edge.http:
            http = _EDGE_HTTP if Role.EDGE in roles else HTTP_OFF
            edge = edge.model_copy(update={"http": http})
        if not provider.engine and roles == ALL_ROLES:
            provider = provider.model_copy(update={"engine": "llama"})
        return self.model_copy(update={"mesh": mesh, "provider": provider, "edge": edge})


def _default_listen(roles: Role, mesh: MeshSettings) -> str:
    if Role.RELAY in roles and roles != ALL_ROLES:
        return _RELAY_LISTEN
    return _JOINED_LISTEN if mesh.join else _LOOPBACK_LISTEN


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "node": NodeSettings,
    "mesh": MeshSettings,
    "provider": ProviderSettings,
    "edge": EdgeSettings,
    "log": LogSettings,
}
"""Every section by its name in `aimo.toml`."""

KEYS: Final = tuple(
    f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields
)
"""Every setting as `section.key`."""

KEYS_BY_ROLE: Final = frozenset({"mesh.listen", "provider.engine", "edge.http"})
"""Those whose default `Settings.for_roles` fills in."""


def variable_of(key: str) -> str:
    """The environment variable for a setting: `AIMO_SECTION__KEY`."""
    section, _, name = key.partition(".")
    return f"AIMO_{section.upper()}__{name.upper()}"
