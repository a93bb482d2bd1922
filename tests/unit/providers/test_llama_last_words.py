"""Why llama.cpp could not start stands in its log, which it completes only if it ends by itself."""

import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import ModelName
from aimo_node.domain.models import EngineState
from providers.llama.child import LAST_WORDS_SECONDS, LlamaChild, LlamaPlan


class FailingChild:
    """Says that it failed, and ends when it is let."""

    pid = 1

    def __init__(self):
        self.ended = trio.Event()

    async def read_answer(self):
        return "failed no such tensor"

    async def wait(self):
        await self.ended.wait()
        return "ended with exit code 1"


def ignore(line, state=EngineState.STARTING):
    """Progress is for people."""


def charge(folder):
    weights = folder / "x.gguf"
    weights.write_bytes(b"GGUF")
    return LlamaChild(LlamaPlan(weights, ModelName("x"), folder))


async def test_failed_child_may_end_by_itself(tmp_path, autojump_clock):
    child, told = FailingChild(), []

    async def wait():
        told.append(await charge(tmp_path).wait_ready(child, ignore))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.move_on_after(LAST_WORDS_SECONDS / 2):
            await trio.sleep_forever()
        assert not told, "it would be killed before its log is complete"
        child.ended.set()
        await wait_all_tasks_blocked()
        assert told == ["no such tensor"]


async def test_failed_child_that_does_not_end_is_not_waited_for_long(tmp_path, autojump_clock):
    started = trio.current_time()
    assert await charge(tmp_path).wait_ready(FailingChild(), ignore) == "no such tensor"
    assert trio.current_time() - started <= LAST_WORDS_SECONDS + 0.1
