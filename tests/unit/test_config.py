"""Configuration: who wins, what is refused and in which words, what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimo_node.config.display import HIDDEN, shown_values
from aimo_node.config.layers import Layer
from aimo_node.config.loading import LoadedSettings, load_settings
from aimo_node.config.settings import (
    ALL_ROLES,
    KEYS,
    MeshSettings,
    ProviderSettings,
    Settings,
    variable_of,
)
from aimo_node.domain.ids import Role
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.errors import ConfigError

PEER = "12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk"
ADDRESS = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"
JOIN = format_join(JoinTarget((ADDRESS,), bytes(range(32))))


def load(
    text: str = "", *, folder: Path, flags: Layer | None = None, **environ: str
) -> LoadedSettings:
    """Load a configuration file with this text, in an otherwise empty world."""
    file = folder / "aimo.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(flags or Layer(), environ=environ, file=file)


def flag(key: str, value: object) -> Layer:
    layer = Layer()
    layer.add(key, value, "flag --x")
    return layer


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = "[log]\nlevel = 'error'\nformat = 'json'\n[provider]\nmodel = 'from-file'\n"
    environ = {"AIMO_LOG__LEVEL": "warning", "AIMO_PROVIDER__MODEL": "from-environment"}
    loaded = load(file, folder=tmp_path, flags=flag("log.level", "debug"), **environ)
    assert loaded.settings.log.level == "debug"
    assert loaded.settings.provider.model == "from-environment"
    assert loaded.settings.log.format == "json"
    assert loaded.settings.edge.request_deadline_seconds == 600
    assert loaded.origins["log.level"] == "flag --x"
    assert loaded.origins["provider.model"] == "environment AIMO_PROVIDER__MODEL"
    assert loaded.origins["log.format"] == f"file {tmp_path / 'aimo.toml'}"
    assert loaded.origins["edge.request_deadline_seconds"] == "default"


def test_every_setting_can_be_set_by_its_variable(tmp_path: Path) -> None:
    samples = {
        "node.grace_seconds": "5",
        "mesh.join": f"{JOIN},{ADDRESS}",
        "mesh.open": "yes",
        "mesh.authority": "no",
        "mesh.listen": "/ip4/127.0.0.1/tcp/0, /ip6/::1/tcp/0",
        "relay.member_megabytes_per_second": "2",
        "relay.circuit_megabytes_max": "0.5",
        "provider.engine_args": "--tokens 200 --text 'two words'",
        "provider.requests_max": "7",
        "provider.waiting_max": "3",
        "provider.idle_unload": "10m",
        "provider.tokens_max": "4096",
        "provider.models": "fast=gpt-4o-mini, gpt-4o",
        "provider.media_domains": "a.example,b.example",
        "provider.quota_requests_per_day": "100",
        "provider.quota_tokens_per_day": "50000",
        "edge.http": "[::1]:0",
        "edge.behind_proxy": "1",
        "edge.request_deadline_seconds": "1.5",
        "edge.trust": f"{PEER},{PEER}",
        "log.level": "DEBUG",
        "log.format": "json",
    }
    for key in ("provider.models", "provider.api_key_env"):  # each excludes others
        samples_alone = {variable_of(key): samples.pop(key, "X")}
        assert load(folder=tmp_path, **samples_alone).origins[key].startswith("environment")
    alone = {"mesh.secret_file", "edge.tls_cert", "edge.tls_key"}
    for key in KEYS:
        others = {"AIMO_EDGE__TLS_CERT": "c", "AIMO_EDGE__TLS_KEY": "k"} if key in alone else {}
        environ = {**others, variable_of(key): samples.get(key, "/some/text")}
        loaded = load(folder=tmp_path, **environ)
        assert loaded.origins[key] == f"environment {variable_of(key)}"
    settings = load(
        folder=tmp_path, **{variable_of(key): text for key, text in samples.items()}
    ).settings
    assert settings.mesh.join == (JOIN, ADDRESS)
    assert settings.mesh.open is True
    assert settings.mesh.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")
    assert settings.relay.circuit_megabytes_max == 0.5
    assert settings.provider.engine_args == ("--tokens", "200", "--text", "two words")
    assert settings.edge.http_bind == ("::1", 0)
    assert settings.log.level == "debug"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    """Compose files pass `${X:-}`, which is empty when X is not set."""
    loaded = load(folder=tmp_path, AIMO_MESH__SECRET_FILE="")
    assert loaded.settings.mesh.secret_file is None


def test_settings_made_by_hand_do_not_read_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG__LEVEL", "debug")
    monkeypatch.setenv("LOG", '{"level": "debug"}')
    assert Settings().log.level == "info"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mesh]\nlistn = []", "unknown key 'mesh.listn'; did you mean 'mesh.listen'?"),
        ("[mash]\nopen = true", r"unknown section \[mash\]; did you mean 'mesh'?"),
        ("[log]\nengine = 'x'", "unknown key 'log.engine'; did you mean 'provider.engine'?"),
        ("level = 'debug'", "did you mean 'log.level'?"),
        ("[mesh]\nzzzzzz = 1", "'aimo config show' lists all settings"),
        ("log = 'debug'", r"expected a table \[log\]"),
        ("[mesh\n", "not valid TOML"),
        ("[log]\nlevel = 'loud'", "log.level: expected 'debug', 'info', 'warning' or 'error'"),
        ("[mesh]\nopen = 'yes'", "mesh.open: expected true or false"),
        ("[mesh]\nlisten = [1]", r"mesh.listen\[0\]: expected a text"),
        ("[mesh]\nlisten = ['0.0.0.0:4001']", "mesh.listen: expected a multiaddr"),
        ("[mesh]\njoin = ['somebody']", "mesh.join: a node is joined by a string"),
        ("[provider]\nrequests_max = '3'", "provider.requests_max: expected a whole number"),
        ("[provider]\nrequests_max = -1", "provider.requests_max: it should be greater"),
        ("[provider]\napi_key_file = 3", "provider.api_key_file: expected a path"),
        ("[[provider.engine]]\nnam = 'x'", "did you mean 'name'"),
        ("[[provider.engine]]\nmodel = 'x'", r"provider.engine\[0\].name: is missing"),
        (
            "[[provider.engine]]\nname = 'x'\nrequests_max = 'y'",
            r"provider.engine\[0\].requests_max: expected a whole number",
        ),
        ("[provider]\nmodel = 'x'\n[[provider.engine]]\nname = 'x'", "model stands beside"),
        ("[provider]\nmodel = 'x'\nmodels = ['y']", "give either models or model"),
        ("[provider]\napi_key_file = 'x'\napi_key_env = 'y'", "either api_key_file or"),
        ("[provider]\nidle_unload = '10 parsecs'", "a duration such as 90s, 10m or 2h"),
        ("[edge]\nhttp = '8000'", "edge.http: expected HOST:PORT"),
        ("[edge]\nhttp = '127.0.0.1:70000'", "edge.http: expected HOST:PORT"),
        ("[edge]\nhttp = '::1:8000'", "IPv6 host in brackets"),
        ("[edge]\nrequest_deadline_seconds = nan", "edge.request_deadline_seconds"),
        ("[edge]\ntls_cert = 'c.pem'", "needs both edge.tls_cert and edge.tls_key"),
        ("[mesh]\nopen = true\nsecret_file = 's'", "an open mesh has no secret"),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_expectation(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(text, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("AIMO_MESH__OPENN", "did you mean 'AIMO_MESH__OPEN'?"),
        ("AIMO_MASH__OPEN", "did you mean 'AIMO_MESH__OPEN'?"),
        ("AIMO_LOG_LEVEL", "did you mean AIMO_LOG__LEVEL?"),
        ("AIMO_MESH__OPEN", r"expected true or false \(environment AIMO_MESH__OPEN\)"),
        ("AIMO_NODE__GRACE_SECONDS", "expected a number"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(folder=tmp_path, **{variable: "maybe"})


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    """Kubernetes sets these for a service called `aimo-edge`."""
    load(folder=tmp_path, AIMO_EDGE_SERVICE_HOST="10.0.0.1", AIMO_EDGE_PORT="tcp://10.0.0.1:8000")


def test_a_file_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(Layer(), environ={}, file=tmp_path / "none.toml")


def test_the_file_beside_wins_over_the_one_in_the_xdg_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, xdg = tmp_path / "here", tmp_path / "xdg"
    (xdg / "aimo").mkdir(parents=True)
    beside.mkdir()
    monkeypatch.chdir(beside)
    (xdg / "aimo" / "aimo.toml").write_text("[provider]\nmodel = 'xdg'\n")
    environ = {"XDG_CONFIG_HOME": str(xdg)}
    assert load_settings(Layer(), environ=environ).settings.provider.model == "xdg"
    (beside / "aimo.toml").write_text("[provider]\nmodel = 'beside'\n")
    loaded = load_settings(Layer(), environ=environ)
    assert loaded.settings.provider.model == "beside"
    assert loaded.file == beside / "aimo.toml"


def test_relative_paths_in_the_file_start_at_the_file(tmp_path: Path) -> None:
    loaded = load("[edge]\nclient_keys_file = 'keys.txt'\n", folder=tmp_path)
    assert loaded.settings.edge.client_keys_file == tmp_path / "keys.txt"


def test_the_state_folder_follows_xdg(tmp_path: Path) -> None:
    loaded = load(folder=tmp_path, XDG_STATE_HOME="/var/lib/someone")
    assert loaded.settings.node.state == Path("/var/lib/someone/aimo")


@pytest.mark.parametrize(
    ("roles", "joined", "listen", "http", "engine"),
    [
        (Role.RELAY, False, "/ip4/0.0.0.0/tcp/4001", "off", ""),
        (Role.RELAY, True, "/ip4/0.0.0.0/tcp/4001", "off", ""),
        (Role.PROVIDER, True, "/ip4/0.0.0.0/tcp/0", "off", "echo"),
        (Role.PROVIDER, False, "/ip4/127.0.0.1/tcp/0", "off", "echo"),
        (Role.EDGE, True, "/ip4/0.0.0.0/tcp/0", "127.0.0.1:8000", ""),
        (ALL_ROLES, False, "/ip4/127.0.0.1/tcp/0", "127.0.0.1:8000", "llama"),
    ],
)
def test_defaults_follow_the_roles(
    roles: Role, joined: bool, listen: str, http: str, engine: str
) -> None:
    mesh = MeshSettings(join=(ADDRESS,)) if joined else MeshSettings()
    provider = ProviderSettings(engine="echo" if roles == Role.PROVIDER else "")
    settings = Settings(mesh=mesh, provider=provider).for_roles(roles)
    assert settings.mesh.listen == (listen,)
    assert settings.edge.http == http
    assert settings.provider.engine == engine


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "edge.example"])
def test_a_door_in_the_open_needs_keys_and_tls(host: str, tmp_path: Path) -> None:
    def start(**environ: str) -> None:
        settings = load(folder=tmp_path, AIMO_EDGE__HTTP=f"{host}:8000", **environ).settings
        settings.for_roles(Role.EDGE)

    with pytest.raises(ConfigError, match="--client-keys-file and --tls-cert"):
        start()
    with pytest.raises(ConfigError, match="also needs --tls-cert"):
        start(AIMO_EDGE__CLIENT_KEYS_FILE="keys")
    with pytest.raises(ConfigError, match="also needs --client-keys-file;"):
        start(AIMO_EDGE__BEHIND_PROXY="1")
    start(AIMO_EDGE__CLIENT_KEYS_FILE="keys", AIMO_EDGE__BEHIND_PROXY="1")
    start(AIMO_EDGE__CLIENT_KEYS_FILE="keys", AIMO_EDGE__TLS_CERT="c", AIMO_EDGE__TLS_KEY="k")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "localhost", "[::1]"])
def test_loopback_needs_nothing(host: str, tmp_path: Path) -> None:
    load(folder=tmp_path, AIMO_EDGE__HTTP=f"{host}:0").settings.for_roles(Role.EDGE)


def test_a_provider_without_an_engine_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match="--engine llama"):
        Settings().for_roles(Role.PROVIDER)


def test_an_edge_without_a_door_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an HTTP door"):
        load(folder=tmp_path, AIMO_EDGE__HTTP="off").settings.for_roles(Role.EDGE)


ENGINES = """
[[provider.engine]]
name = "llama"
idle_unload = "10m"
api_key_file = "key.txt"

[[provider.engine]]
name = "openai"
endpoint = "http://me:hunter2@models.example/v1"
engine_args = "--api-key hunter2"
models = { fast = "mini" }
"""


def test_several_engines_are_tables(tmp_path: Path) -> None:
    settings = load(ENGINES, folder=tmp_path).settings
    llama, openai = settings.provider.engines
    assert (llama.name, llama.idle_unload) == ("llama", 600.0)
    assert llama.api_key_file == tmp_path / "key.txt"
    assert openai.models == {"fast": "mini"}
    assert "hunter2" not in repr(shown_values(settings))


def test_one_engine_is_the_same_as_one_table(tmp_path: Path) -> None:
    plain = load("[provider]\nengine = 'echo'\nmodel = 'm'\n", folder=tmp_path).settings
    table = load("[[provider.engine]]\nname = 'echo'\nmodel = 'm'\n", folder=tmp_path).settings
    assert plain.provider.engines == table.provider.engines
    assert Settings().provider.engines == ()


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    environ = {
        "AIMO_MESH__JOIN": JOIN,
        "AIMO_PROVIDER__ENDPOINT": "https://me:hunter2@models.example/v1",
        "AIMO_PROVIDER__ENGINE_ARGS": "--api-key hunter2 --token=hunter2 --tokens 200",
    }
    values = shown_values(load(folder=tmp_path, **environ).settings)
    assert "hunter2" not in repr(values)
    assert JOIN[10:40] not in repr(values)
    assert values["mesh.join"] == [f"aimo:… ({ADDRESS}, secret {HIDDEN})"]
    assert values["provider.endpoint"] == f"https://{HIDDEN}@models.example/v1"
    assert set(values) == set(KEYS)


def test_a_damaged_join_string_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder=tmp_path, AIMO_MESH__JOIN=JOIN[:-3])
    assert JOIN[10:40] not in str(caught.value)


def test_an_edge_trusts_all_members_or_those_it_names(tmp_path: Path) -> None:
    assert load(folder=tmp_path).settings.edge.trusted_peers is None
    for text in ('trust = "members"', 'trust = ["members"]'):
        assert load(f"[edge]\n{text}\n", folder=tmp_path).settings.edge.trusted_peers is None
    named = load(f'[edge]\ntrust = ["{PEER}"]\n', folder=tmp_path).settings
    assert named.edge.trusted_peers == {PEER}
    assert shown_values(named)["edge.trust"] == [PEER]


@pytest.mark.parametrize("text", ["'everybody'", "[]", f"['members', '{PEER}']", "['12D3KooWx']"])
def test_a_trust_that_names_nobody_is_refused(tmp_path: Path, text: str) -> None:
    """Not taken for everybody, nor for nobody."""
    with pytest.raises(ConfigError, match=r"edge\.trust: expected members, or peer ids"):
        load(f"[edge]\ntrust = {text}\n", folder=tmp_path)


def test_a_node_can_listen_nowhere_unless_it_is_a_relay(tmp_path: Path) -> None:
    settings = load('[mesh]\nlisten = ["off"]\n', folder=tmp_path).settings
    assert settings.for_roles(Role.EDGE).mesh.listen_addresses == ()
    with pytest.raises(ConfigError, match="a relay has to listen"):
        settings.for_roles(Role.RELAY)
    with pytest.raises(ConfigError, match=r"mesh\.listen.*multiaddr"):
        load('[mesh]\nlisten = ["off", "/ip4/127.0.0.1/tcp/0"]\n', folder=tmp_path)
    with pytest.raises(ConfigError, match=r"mesh\.announce.*multiaddr"):
        load('[mesh]\nannounce = ["off"]\n', folder=tmp_path)
