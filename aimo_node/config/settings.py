"""Every setting: its key, type, default and meaning. `loading.load_settings` fills the tree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from aimo_node.config.places import default_state_folder
from aimo_node.config.provider import ProviderSettings
from aimo_node.config.section import Section
from aimo_node.config.values import (
    HTTP_OFF,
    LISTEN_OFF,
    TRUST_MEMBERS,
    Addresses,
    HttpAddress,
    Joins,
    ListenAddresses,
    LowerCase,
    OptionalPath,
    PathValue,
    Texts,
    TrustedPeers,
    is_loopback,
    split_host_port,
)
from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import ConfigError

ALL_ROLES: Final = Role.RELAY | Role.PROVIDER | Role.EDGE
"""What `aimo up` is; it stays on loopback although it is a relay too."""

_RELAY_LISTEN: Final = "/ip4/0.0.0.0/tcp/4001"
_JOINED_LISTEN: Final = "/ip4/0.0.0.0/tcp/0"
_LOOPBACK_LISTEN: Final = "/ip4/127.0.0.1/tcp/0"
_EDGE_HTTP: Final = "127.0.0.1:8000"


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

    join: Joins = Field(
        default=(),
        description="Whom to join: join strings, @FILE holding one, or multiaddrs with /p2p/PEER.",
    )
    secret_file: OptionalPath = Field(
        default=None,
        description="File with the closed mesh's secret: 64 hexadecimal characters, mode 0600.",
    )
    open: bool = Field(default=False, description="Admit every node: no mesh secret at all.")
    authority: bool = Field(
        default=False,
        description="Decide who is a member: by invites and certificates, not by a secret.",
    )
    listen: ListenAddresses = Field(
        default=(),
        description=(
            "libp2p addresses to listen on; port 0 picks one; off: none."
            f" Relay: {_RELAY_LISTEN}; others:"
            f" {_JOINED_LISTEN} when they join a mesh, {_LOOPBACK_LISTEN} when not."
        ),
    )

    announce: Addresses = Field(
        default=(),
        description=(
            "Addresses under which others reach this node, when it cannot see them itself: behind"
            " a router or in a container. Told before those it listens on."
        ),
    )

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """What to listen on; empty for a node that only dials and is reached through relays."""
        return () if self.listen == (LISTEN_OFF,) else self.listen

    @model_validator(mode="after")
    def _open_or_secret(self) -> MeshSettings:
        if self.open and self.secret_file is not None:
            raise ValueError("an open mesh has no secret: drop mesh.open or mesh.secret_file")
        if self.authority and (self.open or self.secret_file is not None):
            raise ValueError("mesh.authority goes with neither mesh.open nor mesh.secret_file")
        return self


class RelaySettings(Section):
    """What a relay carries for its members."""

    member_megabytes_per_second: float = Field(
        default=64,
        ge=0.01,
        description="What one member's circuits may carry together; they slow down beyond it.",
    )
    circuit_megabytes_max: float = Field(
        default=0,
        ge=0,
        description="What one circuit may carry before it breaks off; 0 sets no limit.",
    )


class EdgeSettings(Section):
    """The HTTP door."""

    http: HttpAddress = Field(
        default="",
        description=(
            f"HOST:PORT of the HTTP API, or off. Edge and up: {_EDGE_HTTP}; relay and provider:"
            " off, and when set health and metrics only."
        ),
    )
    client_keys_file: OptionalPath = Field(
        default=None, description="File with the keys consumers may use, one per line."
    )
    tls_cert: OptionalPath = Field(
        default=None, description="Certificate chain (PEM) for HTTPS; needs edge.tls_key."
    )
    tls_key: OptionalPath = Field(
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
    trust: TrustedPeers = Field(
        default=(TRUST_MEMBERS,),
        description=(
            "Providers this edge asks: members, all there are in the mesh, or a list of peer ids."
        ),
    )

    @model_validator(mode="after")
    def _tls_is_a_pair(self) -> EdgeSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("HTTPS needs both edge.tls_cert and edge.tls_key")
        return self

    @property
    def trusted_peers(self) -> frozenset[PeerId] | None:
        """The only providers that may be asked, or None for all members."""
        if self.trust == (TRUST_MEMBERS,):
            return None
        return frozenset(PeerId(peer) for peer in self.trust)

    @property
    def http_bind(self) -> tuple[str, int] | None:
        """Host and port to bind, or None for no HTTP door."""
        return None if self.http in {"", HTTP_OFF} else split_host_port(self.http)


class LogSettings(Section):
    """What is written to stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LowerCase] = Field(
        default="info", description="Least important level that is logged."
    )
    format: Annotated[Literal["text", "json"], LowerCase] = Field(
        default="text", description="text for people, json for machines."
    )


class Settings(BaseSettings):
    """The whole tree, frozen. Each package gets only the section it needs."""

    model_config = SettingsConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True
    )

    node: NodeSettings = Field(default_factory=NodeSettings)
    mesh: MeshSettings = Field(default_factory=MeshSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
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
        """The same settings with the defaults that depend on what the node does filled in.

        Raises:
            ConfigError: what is left does not make sense for these roles.
        """
        mesh, provider, edge = self.mesh, self.provider, self.edge
        if not mesh.listen:
            mesh = mesh.model_copy(update={"listen": (_default_listen(roles, mesh),)})
        if not edge.http:
            http = _EDGE_HTTP if Role.EDGE in roles else HTTP_OFF
            edge = edge.model_copy(update={"http": http})
        if not provider.engine and roles == ALL_ROLES:
            provider = provider.model_copy(update={"engine": "llama"})
        if Role.PROVIDER in roles and not provider.engine:
            raise ConfigError(
                "provider.engine: say which engine serves the model, such as --engine llama (the"
                " demo model), --engine vllm --model M or --engine openai --endpoint URL --model M"
            )
        if Role.RELAY in roles and not mesh.listen_addresses:
            raise ConfigError("mesh.listen: a relay has to listen: give --listen an address")
        check_door(edge, roles)
        return self.model_copy(update={"mesh": mesh, "provider": provider, "edge": edge})


def check_door(edge: EdgeSettings, roles: Role) -> None:
    """Refuse a door that strangers could use, and an edge without any.

    Raises:
        ConfigError: the message names the flags that are missing.
    """
    bind = edge.http_bind
    if bind is None:
        if Role.EDGE in roles:
            raise ConfigError("edge.http: an edge needs an HTTP door: give --http HOST:PORT")
        return
    if is_loopback(bind[0]):
        return
    missing = []
    if edge.client_keys_file is None:
        missing.append("--client-keys-file")
    if edge.tls_cert is None and not edge.behind_proxy:
        missing.append("--tls-cert and --tls-key (or --behind-proxy)")
    if missing:
        raise ConfigError(
            f"edge.http: {edge.http} can be reached from elsewhere, so it also needs"
            f" {' and '.join(missing)}; or bind 127.0.0.1"
        )


def _default_listen(roles: Role, mesh: MeshSettings) -> str:
    if Role.RELAY in roles and roles != ALL_ROLES:
        return _RELAY_LISTEN
    return _JOINED_LISTEN if mesh.join else _LOOPBACK_LISTEN


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "node": NodeSettings,
    "mesh": MeshSettings,
    "relay": RelaySettings,
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
