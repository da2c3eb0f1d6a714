"""Who is started, restarted, released, and who leaves first: on a clock of the test's own, without Ray."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from saga_dist.errors import DataError, EngineError, WorkerError
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.worker_group import ScaleRequest, WorkerGroup

CONFIG = PoolConfig(
    workers=3, tasks_per_lease=1, max_attempts=3, timeouts=Timeouts(start_s=500, lease_s=100, heartbeat_s=20)
)
BROKEN = EngineError("CUDA out of memory", where="engine")


class Crowd:
    """A group whose workers do what they are given, and the tasks that supervise its slots."""

    def __init__(self, adapter: Any, config: PoolConfig = CONFIG) -> None:
        self.group: WorkerGroup[str, str] = WorkerGroup(adapter, config, self._work)
        self._idle_s = config.idle_release_s or None
        self._tasks: asyncio.TaskGroup | None = None

    async def _work(self, slot: Any) -> None:
        while not slot.leaving:
            if await slot.next_lease(self._idle_s):
                await slot.run({"task": "task"}, lambda number: None)
            elif self.group.has_surplus:
                slot.release()
                return

    def ask_for(self, number: int, *, at_once: bool = False, demand: int = 0) -> None:
        assert self._tasks is not None
        for slot in self.group.reconcile(ScaleRequest(number, at_once, demand)):
            self._tasks.create_task(self.group.supervise(slot))

    def states(self) -> dict[str, str]:
        return {worker.name: worker.state for worker in self.group.status()}

    async def play(self, scene: Callable[[Crowd], Awaitable[Any]]) -> Any:
        """Returns what the scene returns; all slots end with it."""
        async with asyncio.TaskGroup() as self._tasks:
            found = await scene(self)
            self.group.evict_all()
        assert self.states() == {} and self.group.num_up == 0 and self.group.idle == []
        return found


def test_the_least_useful_leave_first_and_the_youngest_of_them(instantly: Any, fake_adapter: Any) -> None:
    async def scene(crowd: Crowd) -> list[dict[str, str]]:
        crowd.ask_for(5)
        await asyncio.sleep(1)
        for slot in (crowd.group.idle[0], crowd.group.idle[-1]):
            slot.assign()
        found = [crowd.states()]
        for number in (4, 3, 1):
            crowd.ask_for(number)
            await asyncio.sleep(0.01)
            found.append(crowd.states())
        crowd.ask_for(2)  # one that was about to leave stays
        await asyncio.sleep(0.01)
        return [*found, crowd.states()]

    adapter = fake_adapter([0, 0, 0, 9e9, 0], lease_s=50.0)
    all_five, without_starting, without_idle, one, two = instantly(Crowd(adapter).play(scene))
    assert all_five == {
        "worker-0": "busy",
        "worker-1": "idle",
        "worker-2": "idle",
        "worker-3": "starting",
        "worker-4": "busy",
    }
    assert without_starting == {"worker-0": "busy", "worker-1": "idle", "worker-2": "idle", "worker-4": "busy"}
    assert without_idle == {"worker-0": "busy", "worker-1": "idle", "worker-4": "busy"}
    assert one == {"worker-0": "busy", "worker-4": "leaving"}
    assert two == {"worker-0": "busy", "worker-4": "busy"}


def test_those_who_leave_at_once_include_those_who_were_finishing(instantly: Any, fake_adapter: Any) -> None:
    async def scene(crowd: Crowd) -> list[dict[str, str]]:
        crowd.ask_for(2)
        await asyncio.sleep(1)
        for slot in tuple(crowd.group.idle):
            slot.assign()
        crowd.ask_for(1)
        await asyncio.sleep(0.01)
        found = [crowd.states()]
        crowd.ask_for(1, at_once=True)
        await asyncio.sleep(0.01)
        return [*found, crowd.states()]

    found = instantly(Crowd(fake_adapter(lease_s=50.0)).play(scene))
    assert found == [{"worker-0": "busy", "worker-1": "leaving"}, {"worker-0": "busy"}]


def test_start_that_fails_is_tried_again_later_and_later(instantly: Any, fake_adapter: Any) -> None:
    adapter = fake_adapter([0.0, *[BROKEN] * 9])

    async def scene(crowd: Crowd) -> float:
        crowd.ask_for(2)
        await asyncio.sleep(300)
        assert crowd.states() == {"worker-0": "idle", "worker-1": "idle"}
        assert crowd.group.num_replacements == 9
        return crowd.group.num_up

    assert instantly(Crowd(adapter).play(scene)) == 2
    starts = [at for at, _ in adapter.spawned[1:]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])


def ended_by(crowd: Crowd, instantly: Any, kind: type[Exception]) -> tuple[Exception, float]:
    """What ended a group that wants one worker, and when."""

    async def story() -> tuple[Exception, float]:
        async def scene(crowd: Crowd) -> None:
            crowd.ask_for(1)
            await asyncio.sleep(1e6)

        with pytest.raises(ExceptionGroup) as caught:
            await crowd.play(scene)
        (error,) = caught.value.exceptions
        assert type(error) is kind
        return error, asyncio.get_running_loop().time()

    return instantly(story())


def test_group_without_any_worker_gives_up_after_a_few_starts(instantly: Any, fake_adapter: Any) -> None:
    error, after_s = ended_by(Crowd(fake_adapter([BROKEN] * 9)), instantly, WorkerError)
    assert str(error) == "worker: no worker could be started, the last time: engine: CUDA out of memory"
    assert after_s == pytest.approx(1 + 2), "the third start follows the second pause"


def test_group_that_lost_its_worker_gives_up_after_the_time_of_a_start(instantly: Any, fake_adapter: Any) -> None:
    adapter = fake_adapter([0.0, *[BROKEN] * 99])
    adapter.hangs_at = 1.0

    class Fragile(Crowd):
        async def _work(self, slot: Any) -> None:
            try:
                await super()._work(slot)
            except WorkerError:
                adapter.hangs_at = float("inf")
                slot.kill()

    error, after_s = ended_by(Fragile(adapter), instantly, WorkerError)
    assert "no worker could be started, the last time" in str(error)
    # The hang is found at 30 s; starts follow 1, 3, 7, 15, 31, 63, 123, … s later, the first beyond 500 s after 543 s.
    assert after_s == pytest.approx(30 + 543)


def test_users_mistake_ends_a_group_without_any_worker_at_once(instantly: Any, fake_adapter: Any) -> None:
    mistake = DataError("no images", where="/data")
    error, after_s = ended_by(Crowd(fake_adapter([mistake])), instantly, DataError)
    assert error is mistake
    assert after_s == 0.0


def test_idle_workers_are_released_down_to_the_minimum_and_come_back_on_demand(
    instantly: Any, fake_adapter: Any
) -> None:
    config = replace(CONFIG, min_workers=1, idle_release_s=5.0)

    async def scene(crowd: Crowd) -> list[list[str]]:
        crowd.ask_for(3)
        await asyncio.sleep(4.9)
        found = [sorted(crowd.states().values())]
        await asyncio.sleep(0.2)
        found.append(sorted(crowd.states().values()))
        crowd.ask_for(3, demand=2)
        await asyncio.sleep(0.1)
        return [*found, sorted(crowd.states().values())]

    found = instantly(Crowd(fake_adapter(), config).play(scene))
    assert found == [["idle"] * 3, ["idle", "released", "released"], ["idle", "idle", "released"]]


def test_question_is_a_demand_and_goes_to_another_worker_when_the_first_one_dies(
    instantly: Any, fake_adapter: Any
) -> None:
    from ray.exceptions import RayActorError

    config, adapter = replace(CONFIG, min_workers=0, idle_release_s=5.0), fake_adapter()

    async def scene(crowd: Crowd) -> Any:
        crowd.ask_for(2)
        await asyncio.sleep(6)
        assert set(crowd.states().values()) == {"released"}
        question = asyncio.create_task(crowd.group.call("health"))
        await asyncio.sleep(0.1)
        crowd.ask_for(2)
        assert await question == 1.0
        await asyncio.sleep(4)
        assert sorted(crowd.states().values()) == ["idle", "released"]
        dying = crowd.group.idle[0].actor
        dying.digest = dying._method(lambda: (0.5, RayActorError()))
        crowd.ask_for(2, demand=2)
        question = asyncio.create_task(crowd.group.call("digest"))
        await asyncio.sleep(0.1)
        (other,) = [slot.actor for slot in crowd.group.idle if slot.actor is not dying]
        other.digest = other._method(lambda: (0.5, "sha256"))
        return await question

    assert instantly(Crowd(adapter, config).play(scene)) == "sha256"
