"""`aimo auth` and `aimo check-usage` against a GitHub on loopback: what people see, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from aimo_node.cli.main import run
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.fake_github import (
    NO_SUBSCRIPTION,
    UNAVAILABLE,
    USER_CODE,
    FakeGitHub,
    fake_github,
    oauth_error,
)
from aimo_node.testing.upstream import Whole
from providers.copilot.credentials import CREDENTIAL_FILE, load_credential

Captured = pytest.CaptureFixture[str]
NOWHERE = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWHSTewn5Y86PxNNnHkZRgBXpBHgPM1imU49neZ5Ba9wa4"
PENDING = oauth_error("authorization_pending")
ROOT = Path(__file__).resolve().parents[2]
POLL = "/login/oauth/access_token"


@pytest.fixture
async def github() -> AsyncIterator[FakeGitHub]:
    async with fake_github() as served:
        yield served


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AIMO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "state"


async def aimo(*arguments: str, state: Path) -> int:
    """Run a command in a thread of its own, so that GitHub can answer meanwhile."""
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(run, [*arguments, "--state", str(state)])


async def log_in(github: FakeGitHub, state: Path, *flags: str) -> int:
    return await aimo("auth", "copilot", "--github-url", github.endpoint, *flags, state=state)


def command_line(github: FakeGitHub, state: Path) -> list[str]:
    program = [sys.executable, "-m", "aimo_node", "auth", "copilot"]
    return [*program, "--github-url", github.endpoint, "--state", str(state)]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_a_login_shows_the_code_waits_and_keeps_the_token_for_its_user_alone(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    github.poll_answers.append(PENDING)
    assert await log_in(github, state) == 0
    shown = capsys.readouterr()
    assert f"{github.endpoint}/login/device" in shown.out
    assert USER_CODE in shown.out
    assert "logged in" in shown.out
    assert "entered the code in the browser, 15:00 left" in shown.err
    assert "secret" not in shown.out + shown.err
    path = state / CREDENTIAL_FILE
    credential = load_credential(path)
    assert credential is not None
    assert credential.github_token == github.github_tokens[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files_in(state) == [CREDENTIAL_FILE]
    asked = {received.path: received.body for received in github.asked}
    assert asked["/login/device/code"] == {
        "client_id": "Iv1.b507a08c87ecfe98",
        "scope": "read:user",
    }
    assert asked[POLL]["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"
    assert all(one.headers["accept"] == "application/json" for one in github.asked[:2])


async def test_a_program_reads_the_login_as_json(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    github.expires_in = 600
    flags = ["--account-type", "business", "--client-id", "Iv1.mine", "--json"]
    assert await log_in(github, state, *flags) == 0
    code, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert code == {
        "event": "code",
        "user_code": USER_CODE,
        "verification_uri": f"{github.endpoint}/login/device",
        "expires_in": 600,
    }
    assert (done["event"], done["account_type"]) == ("logged_in", "business")
    assert github.asked[0].body["client_id"] == "Iv1.mine"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("expired_token", "has expired"),
        ("access_denied", "cancelled in the browser"),
        ("incorrect_device_code", "aimo auth copilot"),
        ("unsupported_grant_type", "no login by device code"),
        ("incorrect_client_credentials", "--client-id"),
        ("device_flow_disabled", "--client-id"),
        ("something_new", "the reason for something_new"),
    ],
)
async def test_every_refusal_is_one_sentence_and_exit_code_1(
    github: FakeGitHub, state: Path, capsys: Captured, code: str, words: str
) -> None:
    github.poll_answers.append(oauth_error(code))
    assert await log_in(github, state) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("aimo: ")
    assert words in said
    assert files_in(state) == []


async def test_slow_down_is_obeyed(github: FakeGitHub, state: Path) -> None:
    """RFC 8628, 3.5: five seconds more. The time is taken from the requests themselves."""
    github.poll_answers.append(oauth_error("slow_down"))
    times: list[float] = []

    class Watched(list):  # type: ignore[type-arg]
        def append(self, received: object) -> None:
            times.append(trio.current_time())
            super().append(received)

    github.asked = Watched()
    assert await log_in(github, state) == 0
    polls = [time for time, one in zip(times, github.asked, strict=True) if one.path == POLL]
    assert polls[1] - polls[0] >= 6


async def test_a_code_that_nobody_enters_expires(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    github.expires_in = 2
    github.poll_answers.extend([PENDING] * 10)
    assert await log_in(github, state) == 1
    assert "has expired" in capsys.readouterr().err
    assert len(github.poll_answers) >= 8, "it is not asked for again"


async def test_a_github_that_fails_for_a_moment_is_asked_again(
    github: FakeGitHub, state: Path
) -> None:
    github.poll_answers.append(UNAVAILABLE)
    assert await log_in(github, state) == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Whole(404, b'{"message": "Not Found"}'), "--client-id"),
        (oauth_error("device_flow_disabled"), "--client-id"),
        (UNAVAILABLE, "503"),
    ],
)
async def test_a_login_that_cannot_begin_says_why(
    github: FakeGitHub, state: Path, capsys: Captured, answer: Whole, words: str
) -> None:
    github.code_answers.append(answer)
    assert await log_in(github, state) == 1
    assert words in capsys.readouterr().err


async def test_a_github_that_cannot_be_reached_is_exit_code_1(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    url = f"http://127.0.0.1:{port}"
    assert await aimo("auth", "copilot", "--github-url", url, state=state) == 1
    assert f"GitHub ({url}) cannot be reached" in capsys.readouterr().err


async def test_an_account_without_copilot_is_told_so_and_not_kept(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    github.token_answers.append(NO_SUBSCRIPTION)
    assert await log_in(github, state) == 1
    said = capsys.readouterr().err
    assert "no Copilot subscription" in said
    assert "logged in as octocat" in said
    assert files_in(state) == []


async def test_a_login_that_could_not_be_tried_is_kept_with_a_warning(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    github.token_answers.append(UNAVAILABLE)
    assert await log_in(github, state) == 0
    assert "was not tried" in capsys.readouterr().err
    assert files_in(state) == [CREDENTIAL_FILE]


@pytest.mark.parametrize(
    "flags",
    [
        ("--github-url", "http://github.example"),
        ("--enterprise-url", "http://corp"),
        ("--enterprise-url", "corp.ghe.com", "--github-url", "https://github.com"),
        ("--account-type", "student"),
        ("--colour",),
    ],
)
async def test_wrong_usage_is_exit_code_2_and_asks_nobody(
    state: Path, capsys: Captured, flags: tuple[str, ...]
) -> None:
    assert await aimo("auth", "copilot", *flags, state=state) == 2
    assert capsys.readouterr().err
    assert files_in(state) == []


async def test_ctrl_c_while_waiting_leaves_nothing_behind(github: FakeGitHub, state: Path) -> None:
    github.poll_answers.extend([PENDING] * 60)
    process = await trio.lowlevel.open_process(
        command_line(github, state), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        await eventually(lambda: POLL in github.paths(), "GitHub is asked")
        process.send_signal(signal.SIGINT)
        with trio.fail_after(30):
            await process.wait()
        out, err = await process.stdout.receive_some(), await process.stderr.receive_some()
    finally:
        process.kill()
        await process.wait()
    assert process.returncode == 130
    assert USER_CODE.encode() in out
    assert b"Traceback" not in err
    assert files_in(state) == []


async def test_a_terminal_sees_one_line_that_counts_down(github: FakeGitHub, state: Path) -> None:
    github.poll_answers.extend([PENDING] * 2)
    leader, follower = pty.openpty()
    try:
        with trio.fail_after(60):
            await trio.run_process(
                command_line(github, state), stderr=follower, capture_stdout=True
            )
        text = os.read(leader, 65_536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "\n" not in text, "the line is written over itself"
    assert re.search(r"\rwaiting until you have entered the code in the browser, 14:5\d left", text)
    assert text.endswith(" \r"), "and wiped at the end"


async def test_the_status_is_shown_without_asking_anybody(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    assert await aimo("auth", "status", state=state) == 1
    assert "aimo auth copilot" in capsys.readouterr().out
    assert await aimo("auth", "status", "--json", state=state) == 1
    assert json.loads(capsys.readouterr().out) == {"copilot": {"logged_in": False}}
    await log_in(github, state)
    asked = len(github.asked)
    capsys.readouterr()
    assert await aimo("auth", "status", state=state) == 0
    shown = capsys.readouterr().out
    assert str(state / CREDENTIAL_FILE) in shown
    assert "individual" in shown
    assert await aimo("auth", "status", "--json", state=state) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["copilot"]["logged_in"] is True
    assert "secret" not in shown + text
    assert len(github.asked) == asked


async def test_logging_out_forgets_the_login(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    await log_in(github, state)
    assert await aimo("auth", "logout", state=state) == 0
    assert "logged out" in capsys.readouterr().out
    assert files_in(state) == []
    assert await aimo("auth", "logout", state=state) == 0
    assert "nobody was logged in" in capsys.readouterr().out


async def test_a_login_that_others_may_read_is_refused(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    await log_in(github, state)
    (state / CREDENTIAL_FILE).chmod(0o644)
    for command in (["auth", "status"], ["check-usage"]):
        assert await aimo(*command, state=state) == 2
        assert "chmod 600" in capsys.readouterr().err


async def test_usage_is_a_table_with_bars_or_json(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    await log_in(github, state)
    capsys.readouterr()
    assert await aimo("check-usage", state=state) == 0
    shown = capsys.readouterr().out
    assert "individual_pro" in shown
    assert "2026-12-01" in shown
    assert "premium interactions  [############--------] 60 %  120 of 300" in shown
    assert "unlimited" in shown
    assert await aimo("check-usage", "--json", state=state) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"] == "individual_pro"
    assert told["quotas"][1]["percent_remaining"] == 40
    github.usage = {"copilot_plan": "business"}
    assert await aimo("check-usage", state=state) == 0
    assert "tells no quotas" in capsys.readouterr().out


async def test_usage_without_a_good_login_says_what_to_do(
    github: FakeGitHub, state: Path, capsys: Captured
) -> None:
    assert await aimo("check-usage", state=state) == 1
    assert "aimo auth copilot" in capsys.readouterr().err
    await log_in(github, state)
    github.github_tokens.clear()
    capsys.readouterr()
    assert await aimo("check-usage", state=state) == 1
    said = capsys.readouterr().err
    assert "no longer accepts the login" in said
    assert "Bad credentials" in said


async def test_copilot_is_refused_where_others_could_use_it(state: Path) -> None:
    """The program itself says so, before anything is started."""
    done = await trio.run_process(
        [
            *(sys.executable, "-m", "aimo_node", "provider", "--engine", "copilot", "--open"),
            *("--state", str(state), "--join", NOWHERE),
        ],
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"copilot serves its owner only" in done.stderr
    assert b"aimo up --engine copilot" in done.stderr
