"""Follows a how-to page to the letter: its `sh` and `python` blocks, in order, as real commands.

HTML comments in a page, which its readers do not see, say what goes with the blocks behind them:

- `<!-- on: office -->`: on which machine, until the next such comment;
- `<!-- way: compose -->`: only when the page is followed that way; holds for one block;
- `<!-- press: Ctrl-C -->`: end what runs in that machine's terminal.

A block that ends with a command which runs for ever takes a terminal of its own; the next step
comes when it says that it is ready.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.netlab.machine import Machine

PART = re.compile(
    r"^<!-- (?P<mark>on|way|press): (?P<value>[\w-]+) -->$"
    r"|^(?P<indent> *)```(?P<language>sh|python)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
RUNS_FOR_EVER = re.compile(r"aimo (?:up|relay|provider|edge)\b(?! (?:pause|resume|who)\b)")
STRING = re.compile(r"\baimo:[\w-]+")
READY = re.compile(r"(?m)^(?:\w+ \+ )*\w+ ready$")
LOOKED_AT = {"aimo models": "running"}
"""What one looks at again until that is there: edges hear of providers within seconds."""
LOOK_SECONDS = 30.0
READY_SECONDS = 40.0
END_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Step:
    """One block of a page, or a key to press.

    Attributes:
        machine: where.
        language: `sh` or `python`; empty for a key.
        text: the commands, or the key.
    """

    machine: str
    language: str
    text: str


def steps_of(page: str, way: str) -> Iterator[Step]:
    """What a page says to do, when it is followed in this way."""
    machine, only = "", "all"
    for part in PART.finditer(page):
        mark, value = part["mark"], part["value"]
        if mark == "on":
            machine = value
        elif mark == "way":
            only = value
        elif mark == "press":
            yield Step(machine, "", value)
        else:
            assert machine, "the page does not say on which machine"
            if only in {"all", way}:
                yield Step(machine, part["language"], part["text"])
            only = "all"


class Terminal:
    """A terminal in which a command runs until it is ended."""

    def __init__(self, machine: Machine, script: str) -> None:
        log = f"/tmp/terminal-{time.monotonic_ns()}"
        self._log = Path(f"/proc/{machine.first_pid}/root{log}")
        script = f"{script.rstrip()} >{log} 2>&1"
        self._process = subprocess.Popen(machine.command(script), stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + READY_SECONDS
        while not READY.search(self.output):
            alive = self._process.poll() is None
            problem = f"on {machine.name}: {script}\n{self.output}"
            assert alive, problem
            assert time.monotonic() < deadline, problem
            time.sleep(0.05)

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._log.read_text() if self._log.exists() else ""

    def press_control_c(self) -> None:
        """As a terminal does it: SIGINT to what runs in the foreground."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        nodes = [one for one in children if "aimo_node" in one.cmdline()]
        min(nodes, key=psutil.Process.create_time).send_signal(signal.SIGINT)
        self._process.wait(END_SECONDS)

    def close(self) -> None:
        """Shut the terminal; what runs in it ends with its machine."""
        self._process.kill()
        self._process.wait()


class Follower:
    """A person who does what pages say.

    Attributes:
        outputs: what each block printed, the oldest first.
    """

    def __init__(self, machines: Mapping[str, Machine], replace: Mapping[str, str]) -> None:
        """`replace` is what this person has for the pages' placeholders and examples.

        `aimo:…` needs none: it stands for the newest such string that a command has printed.
        """
        self._machines = machines
        self._replace = replace
        self._terminals: dict[str, Terminal] = {}
        self._folders: dict[str, str] = {}
        self.outputs: list[str] = []

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_how: object) -> None:
        for terminal in self._terminals.values():
            terminal.close()

    def follow(self, page: Path, way: str = "systemd", until: str = "") -> None:
        """Do all of it, or what stands before the heading `until`.

        Raises:
            AssertionError: a command failed; the message has all it printed.
        """
        text = page.read_text(encoding="utf-8")
        if until:
            text, heading, _ = text.partition(f"\n## {until}\n")
            assert heading, f"{page.name} has no heading {until}"
        for step in steps_of(text, way):
            if not step.language:
                self._terminals.pop(step.machine).press_control_c()
            elif step.language == "python":
                program = f"{shlex.quote(sys.executable)} -c {shlex.quote(step.text)}"
                self._run(step.machine, program)
            else:
                self._run(step.machine, self._filled_in(step.text))

    def _filled_in(self, text: str) -> str:
        for placeholder, value in self._replace.items():
            text = text.replace(placeholder, value)
        if "aimo:…" in text:
            printed = STRING.findall("\n".join(self.outputs))
            assert printed, f"nobody has printed a string to join with:\n{text}"
            text = text.replace("aimo:…", printed[-1])
        return text

    def _run(self, name: str, text: str) -> None:
        machine = self._machines[name]
        script = f"cd {self._folders.get(name, '.')}\n{text}"
        *_, last = text.strip().replace("\\\n", " ").splitlines()
        if RUNS_FOR_EVER.match(last):
            self._terminals[name] = Terminal(machine, script)
            return
        output = machine.run(f"{script}\necho; pwd")
        wanted = next((LOOKED_AT[one] for one in LOOKED_AT if text.startswith(one)), "")
        deadline = time.monotonic() + LOOK_SECONDS
        while wanted not in output:
            assert time.monotonic() < deadline, f"on {name}: {text}\n{output}"
            output = machine.run(f"{script}\necho; pwd")
        *lines, folder = output.splitlines()
        self._folders[name] = shlex.quote(folder)
        self.outputs.append("\n".join(lines))
