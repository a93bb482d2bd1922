"""One machine of the lab: a namespace with processes and files of its own, thrown away at the end.

Its files are those of this computer, copied on write: a page's commands may write to `/etc` and
`/opt` as they do in life. What cannot be had here stands in front in PATH (see `standins`).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.netlab.standins import STAND_INS

ROOT = Path(__file__).parents[2]
HOME = "/home/you"
STAND_INS_FOLDER = "/usr/local/lab"
PATH = f"{STAND_INS_FOLDER}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_SECONDS = 60.0

# The first argument is an empty folder, the others are folders that may be mounts of their own.
# Users without rights find their way to the interpreter and the checkout, wherever those are.
MAKE = """
set -e
folder=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for path; do
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
    parent=$path
    while [ "$parent" != / ]; do
        parent=$(dirname "$parent")
        [ "$parent" = / ] || chmod a+x "$root$parent"
    done
done
mkdir -p "$root$HOME"
echo made
exec chroot "$root" sh -c 'cat >/dev/null; exit 0'
"""


class Machine:
    """A machine that runs until `close`.

    Attributes:
        name: that of its namespace in the lab.
        first_pid: its first process, seen from outside.
    """

    def __init__(self, name: str, inside: Sequence[str], folder: Path) -> None:
        """`inside` enters the namespace; `folder` is empty and stays so."""
        self.name = name
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
        kept = dict.fromkeys(str(path) for path in (ROOT, sys.prefix, sys.base_prefix))
        self._holder = subprocess.Popen(
            [*inside, *own, "sh", "-c", MAKE, "sh", str(folder), *kept],
            env={"HOME": HOME, "PATH": PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "made\n":
            said = self._holder.communicate()[1].strip()
            raise AssertionError(f"no files that are copied on write here: {said}")
        (first,) = psutil.Process(self._holder.pid).children()
        self.first_pid = first.pid
        self._add_stand_ins()

    def _add_stand_ins(self) -> None:
        launcher = f'exec {shlex.quote(sys.executable)} -m tests.netlab.standins "$name" "$@"'
        lines = [f"mkdir -p {STAND_INS_FOLDER}", f"cd {STAND_INS_FOLDER}"]
        for name in STAND_INS:
            script = f"#!/bin/sh\nname={name} PYTHONPATH={ROOT}\nexport PYTHONPATH\n{launcher}\n"
            lines.append(f"printf %s {shlex.quote(script)} > {name}; chmod 755 {name}")
        self.run("\n".join(lines))

    def command(self, script: str) -> list[str]:
        """What runs a script on this machine, in the home folder."""
        enter = ["nsenter", "--target", str(self.first_pid), "--net", "--mount", "--pid", "--root"]
        variables = [f"HOME={HOME}", f"PATH={PATH}", "LANG=C.UTF-8"]
        return [*enter, "env", "-i", f"--chdir={HOME}", *variables, "sh", "-ec", script]

    def run(self, script: str) -> str:
        """Run a script to its end; what it printed.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            self.command(script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        problem = f"on {self.name}: {script}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, problem
        return done.stdout

    def close(self) -> None:
        """End all its processes; its files are gone."""
        self._holder.communicate()


def why_no_machine(folder: Path) -> str:
    """The reason why no machine can be made here; empty if one can. Leaves `folder` empty."""
    probe = folder / "probe"
    try:
        with machine("probe", (), probe):
            return ""
    except AssertionError as error:
        return str(error)
    finally:
        probe.rmdir()


@contextmanager
def machine(name: str, inside: Sequence[str], folder: Path) -> Iterator[Machine]:
    """A machine, ended with the block; `folder` must not exist yet."""
    folder.mkdir()
    made = Machine(name, inside, folder)
    try:
        yield made
    finally:
        made.close()
