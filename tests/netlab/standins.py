"""What a machine of the lab has in place of programs that need more than a namespace.

Each stands in PATH under the real one's name and does the nearest real thing:

- `systemctl` runs a unit's own ExecStart line, as a user without rights, with the unit's state
  folder, credentials and environment file; it returns when the node says that it is ready. What
  the unit forbids besides (`ProtectSystem` and the like) is systemd's, and not done.
- `journalctl` shows what that wrote.
- `docker` runs the `command` of a service in docker-compose.yml, with its volumes, environment and
  published ports, as the image's user. No image is built, and there is no network of containers.
- `ufw` opens a port in the machine's real packet filter.
- `git clone` copies this working tree.
- `python3 scripts/install.py` makes a launcher of this working tree in place of an installation;
  tests/integration/test_locked_install.py installs for real.
- `apt-get` does nothing: what it would install is there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
UNITS = Path("/etc/systemd/system")
LOGS = Path("/var/log/lab")
PIDS = Path("/run/lab")
VOLUMES = Path("/var/lib/docker/volumes")
IMAGE = Path("/usr/local/lab-image")
DYNAMIC_USER = 61_184
CREDENTIAL_MODE = 0o440
"""What systemd's access lists look like since its version 254."""
IMAGE_USER = 10_001
START_SECONDS = 40.0
STOP_SECONDS = 40.0


def main(name: str, *words: str) -> None:
    """Be the program of that name; each of the real ones sets its own mask."""
    os.umask(0o022)
    STAND_INS[name](*words)


def apt_get(*_words: str) -> None:
    """Everything is there."""


def git(verb: str, _address: str, folder: str) -> None:
    """`git clone ADDRESS FOLDER`."""
    assert verb == "clone"
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)


def python3(script: str, *words: str) -> None:
    """`python3 scripts/install.py --copy --venv FOLDER`; no other script."""
    assert (script, *words[:-1]) == ("scripts/install.py", "--copy", "--venv")
    assert (Path.cwd() / script).is_file()
    install(Path(words[-1]))


def install(folder: Path) -> None:
    """A launcher as `bin/aimo`, which starts at once and needs no copy of the packages."""
    launcher = folder / "bin" / "aimo"
    launcher.parent.mkdir(parents=True)
    command = f'PYTHONPATH={ROOT} exec {shlex.quote(sys.executable)} -m aimo_node "$@"'
    launcher.write_text(f"#!/bin/sh\n{command}\n")
    launcher.chmod(0o755)


def ufw(verb: str, what: str) -> None:
    """`ufw allow PORT/tcp`."""
    port, _, protocol = what.partition("/")
    assert (verb, protocol) == ("allow", "tcp")
    open_port(int(port))


def open_port(port: int) -> None:
    """In the filter that the lab gives to its public hosts."""
    rule = f"add rule inet host input tcp dport {port} accept"
    subprocess.run(["nft", *rule.split()], check=True)


def systemctl(verb: str, *words: str) -> None:
    """`start`, `stop`, `restart`, `status`, `enable --now` and `daemon-reload`."""
    if verb == "daemon-reload":
        return
    (unit,) = (word for word in words if not word.startswith("-"))
    if verb == "status":
        alive = _alive(_pid_of(unit))
        sys.stdout.write(f"{unit}: {'active (running)' if alive else 'inactive (dead)'}\n")
        sys.exit(0 if alive else 3)
    if verb in {"stop", "restart"}:
        stop(unit)
    if verb in {"start", "restart"} or (verb == "enable" and "--now" in words):
        start_unit(unit)


def journalctl(*words: str) -> None:
    """`journalctl -u UNIT`."""
    unit = words[words.index("-u") + 1]
    sys.stdout.write((LOGS / unit).read_text())


def read_unit(path: Path) -> dict[str, list[str]]:
    """Every `Key=value`, continuation lines joined."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value.strip())
    return settings


def start_unit(unit: str) -> None:
    """Make what the unit asks for, and run its ExecStart."""
    settings = read_unit(UNITS / f"{unit}.service")
    assert settings["DynamicUser"] == ["yes"]
    (folder,) = settings["StateDirectory"]
    state = Path("/var/lib") / folder
    credentials = Path("/run/credentials") / f"{unit}.service"
    own(state)
    own(credentials)
    for line in settings.get("LoadCredential", []):
        name, _, source = line.partition(":")
        shutil.copyfile(source, credentials / name)
        os.chown(credentials / name, DYNAMIC_USER, DYNAMIC_USER)
        (credentials / name).chmod(CREDENTIAL_MODE)
    folders = {"STATE_DIRECTORY": str(state), "CREDENTIALS_DIRECTORY": str(credentials)}
    variables = {"PATH": os.environ["PATH"], **folders}
    for line in settings.get("EnvironmentFile", []):
        variables |= assignments(Path(line.removeprefix("-")))
    (command,) = settings["ExecStart"]
    for name, value in folders.items():
        command = command.replace(f"${{{name}}}", value)
    start(unit, as_user(DYNAMIC_USER, shlex.split(command)), variables)


def own(folder: Path, user: int = DYNAMIC_USER) -> None:
    """A folder of that user, with all that is in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


def assignments(file: Path) -> dict[str, str]:
    """`NAME=value` lines of a file, if it exists."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def as_user(user: int, command: Sequence[str]) -> list[str]:
    """The command as a user without any rights."""
    rights = ("--no-new-privs", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
    return ["setpriv", f"--reuid={user}", f"--regid={user}", *rights, *command]


def start(name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a service in the background; returns when its node says that it is ready."""
    for folder in (LOGS, PIDS):
        folder.mkdir(exist_ok=True)
    with (LOGS / name).open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command, env=dict(variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    (PIDS / name).write_text(str(process.pid))
    deadline = time.monotonic() + START_SECONDS
    while not re.search(rb"(?m)^(\w+ \+ )*\w+ ready$", (LOGS / name).read_bytes()[begin:]):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{name} does not start:\n{(LOGS / name).read_text()}")
        time.sleep(0.05)


def stop(name: str) -> None:
    """SIGTERM, and wait for the end."""
    pid = _pid_of(name)
    if not _alive(pid):
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _alive(pid):
        if time.monotonic() > deadline:
            sys.exit(f"{name} does not stop")
        time.sleep(0.05)


def _pid_of(name: str) -> int:
    file = PIDS / name
    return int(file.read_text()) if file.exists() else 0


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return bool(pid) and status.rpartition(")")[2].split()[0] != "Z"


def docker(compose: str, verb: str, *words: str) -> None:
    """`docker compose up --detach SERVICE`, `stop SERVICE`, `start SERVICE`, `exec SERVICE …`."""
    assert compose == "compose"
    service, *command = (word for word in words if word not in {"--build", "--detach"})
    if verb == "exec":
        enter = ["nsenter", f"--target={_pid_of(service)}", "--mount", "--root"]
        done = subprocess.run([*enter, *as_user(IMAGE_USER, command)], env=_image(), check=False)
        sys.exit(done.returncode)
    assert verb in {"up", "stop", "start"}
    if verb == "stop":
        stop(service)
    else:
        start_service(service)


def start_service(name: str) -> None:
    """One service of the compose file in this folder."""
    import yaml

    values = assignments(Path(".env"))
    settings: dict[str, Any] = yaml.safe_load(Path("docker-compose.yml").read_text())["services"][
        name
    ]
    assert "secrets" not in settings, "this stand-in has no secrets"
    mounts = []
    for line in settings["volumes"]:
        volume, target, *_ = line.split(":")
        own(VOLUMES / volume, IMAGE_USER)
        mounts.append(f"mkdir -p {target} && mount --bind {VOLUMES / volume} {target}")
    for line in settings.get("ports", []):
        bind, port, _ = with_values(line, values).split(":")
        if bind == "0.0.0.0":
            open_port(int(port))
    environment = {
        key: with_values(value, values) for key, value in settings.get("environment", {}).items()
    }
    words = [with_values(word, values) for word in settings["command"]]
    script = " && ".join([*mounts, f"exec {shlex.join(as_user(IMAGE_USER, words))}"])
    start(name, ["unshare", "--mount", "sh", "-c", script], _image() | environment)


def _image() -> dict[str, str]:
    if not IMAGE.exists():
        install(IMAGE)
    return {"PATH": f"{IMAGE}/bin:{os.environ['PATH']}", "HOME": "/state"}


def with_values(text: str, values: Mapping[str, str]) -> str:
    """Resolve `${NAME:-default}` as compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: values.get(found[1]) or found[2], text)


STAND_INS: dict[str, Callable[..., None]] = {
    "apt-get": apt_get,
    "docker": docker,
    "git": git,
    "journalctl": journalctl,
    "python3": python3,
    "systemctl": systemctl,
    "ufw": ufw,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
