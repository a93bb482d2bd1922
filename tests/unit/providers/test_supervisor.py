"""Restarts in virtual time, with children that are no processes."""

import itertools
import math
import random

import pytest
import trio
import trio.testing

from aimo_node.domain.models import EngineState, Health
from aimo_node.errors import EngineStartFailed
from providers.children.supervisor import RestartPolicy, Supervisor


class FakeChild:
    """Lives until it is killed or `die` is called."""

    def __init__(self):
        self.ending = ""
        self.gone = trio.Event()

    def die(self, ending):
        self.ending = self.ending or ending
        self.gone.set()

    def kill(self):
        self.die("was killed")

    async def copy_log(self):
        await self.gone.wait()

    async def wait(self):
        await self.gone.wait()
        return self.ending

    async def end(self):
        self.kill()


class FakeCharge:
    """Each child lives for the next number of seconds in `lives`; None never becomes ready."""

    name = "fake"

    def __init__(self, *lives, answers=True):
        self.lives = list(lives)
        self.answers = answers
        self.born = []
        self.ups = 0
        self.downs = 0
        self.children = []

    async def launch(self):
        self.born.append(trio.current_time())
        child = FakeChild()
        self.children.append(child)
        return child

    async def wait_ready(self, child, progress):
        await trio.lowlevel.checkpoint()
        life = self.lives.pop(0) if self.lives else math.inf
        if life is None:
            return "has a cold"
        trio.lowlevel.spawn_system_task(self._end_later, child, life)
        return ""

    async def _end_later(self, child, life):
        with trio.move_on_after(life):
            await child.gone.wait()
        child.die("fell over")

    async def probe(self, timeout_seconds):
        await trio.lowlevel.checkpoint()
        return self.answers

    def up(self):
        self.ups += 1

    def down(self):
        self.downs += 1

    def explain(self, ending):
        return f"fake {ending}"


def supervisor(charge, **policy):
    return Supervisor(charge, RestartPolicy(**policy), random.Random(1))


def ignore(line, state=EngineState.STARTING):
    pass


async def test_first_start_that_fails_is_not_repeated(autojump_clock):
    charge = FakeCharge(None)
    watched = supervisor(charge)
    with pytest.raises(EngineStartFailed, match="fake has a cold"):
        await watched.run(ignore)
    assert len(charge.born) == charge.downs == 1
    assert watched.health is Health.OFFLINE


async def test_child_that_dies_is_started_again(autojump_clock):
    charge = FakeCharge(5, 5, math.inf)
    watched = supervisor(charge)
    assert watched.state is EngineState.STOPPED
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run, ignore)
        await trio.sleep(4)
        assert watched.health is Health.HEALTHY
        await trio.sleep(1.1)
        assert watched.health is Health.OFFLINE
        await trio.sleep(20)
        assert watched.health is Health.HEALTHY
        nursery.cancel_scope.cancel()
    assert (charge.ups, charge.downs) == (3, 3)
    assert watched.health is Health.OFFLINE
    assert charge.children[-1].gone.is_set()


async def test_pauses_double_up_to_their_maximum_and_then_we_give_up(autojump_clock):
    charge = FakeCharge(*[1] * 20)
    watched = supervisor(charge, deaths_max=6, delay_seconds=1, delay_seconds_max=10)
    with pytest.raises(EngineStartFailed, match="gave up after 7 deaths in a row; fake fell over"):
        await watched.run(ignore)
    pauses = [b - a - 1 for a, b in itertools.pairwise(charge.born)]
    for pause, longest in zip(pauses, [1, 2, 4, 8, 10, 10], strict=True):
        assert longest / 2 <= pause <= longest + 0.01
    assert watched.state is EngineState.ERROR


async def test_long_life_forgives_earlier_deaths(autojump_clock):
    charge = FakeCharge(1, 100, 1, 100, 1, 100, math.inf)
    watched = supervisor(charge, deaths_max=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run, ignore)
        await trio.sleep(500)
        assert watched.health is Health.HEALTHY
        nursery.cancel_scope.cancel()


async def test_child_that_does_not_answer_is_replaced(autojump_clock):
    charge = FakeCharge(answers=False)
    watched = supervisor(charge, probe_every_seconds=5, probes_failed_max=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run, ignore)
        await trio.sleep(6)
        assert watched.health is Health.DEGRADED
        assert len(charge.born) == 1
        await trio.sleep(10)
        assert len(charge.born) == 2
        assert charge.children[0].gone.is_set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wait_seconds", [0, 1, 5.3])
async def test_kill_ends_run_without_another_start(autojump_clock, wait_seconds):
    """Before the launch, while it runs, and in the pause before a restart."""
    charge = FakeCharge(5, 5)
    watched = supervisor(charge, delay_seconds=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run, ignore)
        await trio.sleep(wait_seconds)
        watched.kill()
        watched.kill()
    assert len(charge.born) <= 1
    assert watched.health is Health.OFFLINE
    assert all(child.gone.is_set() for child in charge.children)
