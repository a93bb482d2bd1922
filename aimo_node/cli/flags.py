"""Flags that are settings: each knows its `section.key`, so that it wins over file and environment.

Help texts stand here and not in `aimo_node.config`, since `--help` must not import pydantic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from aimo_node.config.layers import Layer
    from aimo_node.config.loading import LoadedSettings

_Function = TypeVar("_Function", bound=Callable[..., Any])


class SettingOption(click.Option):
    """An option that sets `setting`, a `section.key` of the configuration."""

    def __init__(self, *args: Any, setting: str, **kwargs: Any) -> None:  # noqa: ANN401 (click's)
        super().__init__(*args, **kwargs)
        self.setting = setting


def setting_flag(
    setting: str,
    *names: str,
    **attributes: Any,  # noqa: ANN401 (click's own)
) -> Callable[[_Function], _Function]:
    """A decorator that adds a flag for `setting`."""
    if attributes.get("is_flag"):
        attributes.setdefault("default", False)
    return click.option(*names, cls=SettingOption, setting=setting, **attributes)


def _stack(*decorators: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """One decorator out of several, listed in the order in which help shows them."""

    def decorate(function: _Function) -> _Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


state_flag = setting_flag(
    "node.state",
    "--state",
    metavar="DIR",
    help="Folder for identity, address book, database, sockets and logs.  [default: XDG state]",
)
config_flag = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="TOML file.  [default: aimo.toml here or in the XDG folder]",
)

node_flags: Callable[[Any], Any] = _stack(
    state_flag,
    config_flag,
    setting_flag(
        "mesh.join",
        "--join",
        metavar="X",
        multiple=True,
        help="Whom to join: 'aimo:…', @FILE that holds it, or a multiaddr with /p2p/PEER.",
    ),
    setting_flag(
        "mesh.secret_file",
        "--mesh-secret-file",
        metavar="F",
        help="The closed mesh's secret: 64 hexadecimal characters, mode 0600.",
    ),
    setting_flag("mesh.open", "--open", is_flag=True, help="Admit every node, without a secret."),
    setting_flag(
        "mesh.listen",
        "--listen",
        metavar="MULTIADDR",
        multiple=True,
        help="libp2p address to listen on; port 0 picks one; off: none.",
    ),
    setting_flag(
        "mesh.announce",
        "--announce",
        metavar="MULTIADDR",
        multiple=True,
        help="Where others reach this node, if it cannot see that itself.",
    ),
    setting_flag(
        "edge.http",
        "--http",
        metavar="HOST:PORT",
        help="HTTP API of an edge; health and metrics only elsewhere; or off.",
    ),
    setting_flag(
        "node.grace_seconds",
        "--grace",
        type=float,
        metavar="SECONDS",
        help="How long running requests may take after SIGTERM.  [default: 30]",
    ),
    click.option("--ready-json", is_flag=True, help="Print one JSON line on stdout once ready."),
    setting_flag(
        "log.level",
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        help="Least important level that is logged.  [default: info]",
    ),
    setting_flag(
        "log.format",
        "--log-format",
        type=click.Choice(["text", "json"], case_sensitive=False),
        help="Logs go to stderr.  [default: text]",
    ),
    click.option(
        "--watch-stdin", is_flag=True, hidden=True, help="End when stdin is closed: for parents."
    ),
)
"""Flags of every long-running command."""

authority_flag: Callable[[Any], Any] = setting_flag(
    "mesh.authority",
    "--authority",
    is_flag=True,
    help="Decide who is a member, by invites and certificates, instead of a secret for all.",
)

join_file_flag: Callable[[Any], Any] = click.option(
    "--join-file",
    metavar="FILE",
    help="Write the join string there once ready, mode 0640, for --join @FILE of others.",
)

relay_flags: Callable[[Any], Any] = _stack(
    setting_flag(
        "relay.member_megabytes_per_second",
        "--member-megabytes-per-second",
        type=float,
        metavar="MB",
        help="What one member's circuits may carry together.  [default: 64]",
    ),
    setting_flag(
        "relay.circuit_megabytes_max",
        "--circuit-megabytes-max",
        type=float,
        metavar="MB",
        help="What one circuit may carry before it breaks off.  [default: no limit]",
    ),
)
"""Flags of a relay that stands alone."""

provider_flags: Callable[[Any], Any] = _stack(
    setting_flag(
        "provider.engine",
        "--engine",
        metavar="NAME",
        help="llama (embedded), vllm (GPU), openai or anthropic (a server that runs), copilot"
        " (yourself only), echo (load tests) or a plug-in's.",
    ),
    setting_flag(
        "provider.model",
        "--model",
        metavar="M",
        help="Model to serve; llama without one serves the demo model as 'tiny', an upstream's '*'"
        " are all it has.",
    ),
    setting_flag(
        "provider.models",
        "--models",
        metavar="NAMES",
        help="Several models, 'fast=gpt-4o-mini,gpt-4o': the name in the mesh, then its own.",
    ),
    setting_flag(
        "provider.endpoint",
        "--endpoint",
        metavar="URL",
        help="Server that already runs, for engines that use one.",
    ),
    setting_flag(
        "provider.api_key_file",
        "--api-key-file",
        metavar="F",
        help="Key for that server; never leaves this machine.",
    ),
    setting_flag(
        "provider.api_key_env",
        "--api-key-env",
        metavar="NAME",
        help="Environment variable with that key, instead of a file.",
    ),
    setting_flag(
        "provider.engine_args",
        "--engine-args",
        metavar="ARGS",
        help="The engine's own arguments, in one string.",
    ),
    setting_flag(
        "provider.requests_max",
        "--requests-max",
        type=int,
        metavar="N",
        help="Requests served at the same time.  [default: the engine's choice]",
    ),
    setting_flag(
        "provider.waiting_max",
        "--waiting-max",
        type=int,
        metavar="N",
        help="Requests that may wait for a place.  [default: 16]",
    ),
    setting_flag(
        "provider.idle_unload",
        "--idle-unload",
        metavar="DURATION",
        help="Unload after so long without a request, such as 10m; loads again on demand.",
    ),
    setting_flag(
        "provider.tokens_max",
        "--tokens-max",
        type=int,
        metavar="N",
        help="The most tokens one answer may have.",
    ),
    setting_flag(
        "provider.media_domains",
        "--media-domain",
        metavar="HOST",
        multiple=True,
        help="Host from which the engine may fetch images and such; none by default.",
    ),
    setting_flag(
        "provider.served_name",
        "--served-name",
        metavar="NAME",
        help="Name of the model in the mesh, if not the engine's own.",
    ),
    setting_flag(
        "provider.region",
        "--region",
        metavar="R",
        help="Where the provider stands, in your own words.",
    ),
    setting_flag(
        "provider.quota_requests_per_day",
        "--quota-requests-per-day",
        type=int,
        metavar="N",
        help="Requests each peer may make in a day (UTC).  [default: no limit]",
    ),
    setting_flag(
        "provider.quota_tokens_per_day",
        "--quota-tokens-per-day",
        type=int,
        metavar="N",
        help="Tokens each peer may use in a day (UTC).  [default: no limit]",
    ),
)
"""Flags of commands that serve models."""

edge_flags: Callable[[Any], Any] = _stack(
    setting_flag(
        "edge.client_keys_file",
        "--client-keys-file",
        metavar="F",
        help="Keys that consumers may use, one per line.",
    ),
    setting_flag("edge.tls_cert", "--tls-cert", metavar="F", help="Certificate for HTTPS (PEM)."),
    setting_flag("edge.tls_key", "--tls-key", metavar="F", help="Private key for HTTPS (PEM)."),
    setting_flag(
        "edge.behind_proxy",
        "--behind-proxy",
        is_flag=True,
        help="The promise that a reverse proxy in front does HTTPS.",
    ),
    setting_flag(
        "edge.allowed_hosts",
        "--allowed-host",
        metavar="HOST",
        multiple=True,
        help="Further value of the Host header to answer to.",
    ),
    setting_flag(
        "edge.request_deadline_seconds",
        "--request-deadline",
        type=float,
        metavar="SECONDS",
        help="Longest time one request may take.  [default: 600]",
    ),
    setting_flag(
        "edge.trust",
        "--trust",
        metavar="PEER",
        multiple=True,
        help="Provider this edge may ask, by peer id; repeatable.  [default: members, all of them]",
    ),
)
"""Flags of commands with an HTTP door for consumers."""


def flags_layer(context: click.Context) -> Layer:
    """The settings that the command line itself gives."""
    from aimo_node.config.layers import Layer

    layer = Layer()
    for parameter in context.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, SettingOption):
            continue
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            value = list(value) if isinstance(value, tuple) else value
            layer.add(parameter.setting, value, f"flag {parameter.opts[0]}")
    return layer


def load_from(context: click.Context) -> LoadedSettings:
    """All settings as this command line, the environment and the file give them.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    from aimo_node.config.loading import load_settings

    file = context.params.get("config_file")
    return load_settings(
        flags_layer(context), environ=os.environ, file=Path(file) if file else None
    )
