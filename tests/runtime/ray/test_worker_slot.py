"""Heartbeat and deadlines of one worker, on a clock of the test's own: no Ray, no waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saga_dist.errors import DeadlineExceeded, WorkerError
from saga_dist.runtime.ray.adapter import Timeouts, WorkerState
from saga_dist.runtime.ray.worker_slot import Evicted, WorkerSlot

HEARTBEAT_S, TOLERANCE_S = 10.0, 0.3
PATIENT = Timeouts(start_s=1e6, lease_s=1e6, heartbeat_s=HEARTBEAT_S)


def slot_of(adapter: Any, timeouts: Timeouts = PATIENT) -> WorkerSlot[str, str]:
    return WorkerSlot("worker-0", 0, adapter, timeouts, lambda slot, before: None)


async def start(slot: WorkerSlot[str, str]) -> None:
    await slot.start()
    assert slot.info is not None


def ignore(number: int) -> None:
    """Takes no notice of late answers."""


def lease_of(*tasks: str) -> dict[str, str]:
    return {task: task for task in tasks}


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("hangs_at", [0.05, 2.0, 4.95, 5.05, 5.15, 7.0, 9.95, 10.05, 10.25, 31.4])
def test_a_hang_is_noticed_within_two_heartbeats(
    hangs_at: float, busy: bool, instantly: Any, fake_adapter: Any
) -> None:
    async def noticed_after() -> float:
        adapter = fake_adapter(lease_s=1e5)
        adapter.hangs_at = hangs_at
        slot = slot_of(adapter)
        await start(slot)
        with pytest.raises(DeadlineExceeded, match="^worker-0: no heartbeat for 10 s$"):
            await (slot.run(lease_of("p0"), ignore) if busy else slot.next_lease(None))
        return now() - hangs_at

    noticed = instantly(noticed_after())
    assert HEARTBEAT_S / 2 < noticed <= 1.5 * HEARTBEAT_S + TOLERANCE_S


def test_whoever_answers_lives(instantly: Any, fake_adapter: Any) -> None:
    async def result() -> list[tuple[str, str]]:
        slot = slot_of(fake_adapter(lease_s=50 * HEARTBEAT_S))
        await start(slot)
        return await slot.run(lease_of("p0", "p1"), ignore)

    assert instantly(result()) == [("p0", "p0 done"), ("p1", "p1 done")]


def test_worker_that_answers_its_leases_is_not_asked_for_more(instantly: Any, fake_adapter: Any) -> None:
    async def health_calls() -> int:
        adapter = fake_adapter(lease_s=HEARTBEAT_S / 2 - 1)
        slot = slot_of(adapter)
        await start(slot)
        for _ in range(20):
            await slot.run(lease_of("p0"), ignore)
        return adapter.spawned[0][1].num_health_calls

    assert instantly(health_calls()) == 0


def test_silence_is_counted_from_the_last_answer_of_any_kind(instantly: Any, fake_adapter: Any) -> None:
    """The worker answers its lease at 12 s but no call of ``health`` at all."""

    async def noticed_at() -> float:
        adapter = fake_adapter(lease_s=12.0)
        slot = slot_of(adapter)
        await start(slot)
        actor = adapter.spawned[0][1]
        actor.health = actor._method(lambda: (1e9, 1.0))
        await slot.run(lease_of("p0"), ignore)
        with pytest.raises(DeadlineExceeded, match="no heartbeat"):
            await slot.next_lease(None)
        return now()

    # Asked at 5 s, it answered the lease at 12 s; asked again at 17 s, it was silent until 27 s.
    assert instantly(noticed_at()) == pytest.approx(27.0)


def test_lease_and_start_end_by_their_deadlines(instantly: Any, fake_adapter: Any) -> None:
    timeouts = Timeouts(start_s=30.0, lease_s=7.0, heartbeat_s=HEARTBEAT_S)

    async def story() -> list[float]:
        slot = slot_of(fake_adapter(lease_s=8.0), timeouts)
        await start(slot)
        with pytest.raises(DeadlineExceeded, match="^worker-0: no answer within 7 s$"):
            await slot.run(lease_of("p0"), ignore)
        times = [now()]
        late = slot_of(fake_adapter([31.0]), timeouts)
        with pytest.raises(DeadlineExceeded, match="^worker-0: not started within 30 s; 9 CPUs needed, 2 there$"):
            await late.start()
        assert (late.state, late.actor, late.failed_starts) == (WorkerState.GONE, None, 1)
        return [*times, now()]

    assert instantly(story()) == pytest.approx([7.0, 37.0])


def test_a_task_has_a_deadline_of_its_own_although_others_come_and_go(instantly: Any, fed_adapter: Any) -> None:
    async def story() -> list[Any]:
        slot = slot_of(fed_adapter, Timeouts(start_s=30.0, lease_s=7.0, heartbeat_s=HEARTBEAT_S))
        await start(slot)
        found: list[Any] = []
        for at, other in ((3.0, "p1"), (6.0, "p2")):
            asyncio.get_running_loop().call_at(at, fed_adapter.finish, other)
            found += await slot.run(lease_of("stuck", other), ignore)
        with pytest.raises(DeadlineExceeded, match="^worker-0: no answer within 7 s$"):
            await slot.run(lease_of("stuck", "p3"), ignore)
        return [*found, now()]

    assert instantly(story()) == [("p1", "p1 done"), ("p2", "p2 done"), 7.0]


def test_what_left_the_lease_is_cancelled_and_what_is_new_is_sent(instantly: Any, fed_adapter: Any) -> None:
    async def story() -> list[Any]:
        slot = slot_of(fed_adapter)
        await start(slot)
        running = asyncio.create_task(slot.run(lease_of("p0", "p1"), ignore))
        await asyncio.sleep(1)
        slot.interrupt()
        slot.interrupt()  # the second one has nothing to add
        found: list[Any] = [await running, fed_adapter.num_interruptions]
        asyncio.get_running_loop().call_later(1, fed_adapter.finish, "p2")
        found += [await slot.run(lease_of("p1", "p2"), ignore)]
        slot.interrupt()  # no call is in progress
        return [*found, fed_adapter.aborted, fed_adapter.seen, fed_adapter.num_interruptions]

    interrupted, one, finished, aborted, seen, still_one = instantly(story())
    assert (interrupted, finished) == ([], [("p2", "p2 done")])
    assert (aborted, seen) == (["p0"], [["p0", "p1"], ["p1", "p2"]])
    assert one == still_one == 1


@pytest.mark.parametrize(
    ("finished", "unfinished", "reason"),
    [
        (["p0 done"], [], "1 results for 2 tasks, the first that differs: p1"),
        ([], ["p1"], "0 results for 1 tasks, the first that differs: p0"),
        (["p0 done"], ["p0", "p1"], "1 results for 0 tasks, the first that differs: p0"),
        ([], ["p0", "p1", "p7"], "0 results for 0 tasks, the first that differs: p7"),
    ],
)
def test_a_fed_worker_has_to_account_for_every_task(
    finished: list[str], unfinished: list[str], reason: str, instantly: Any, fed_adapter: Any
) -> None:
    async def story() -> None:
        fed_adapter.receive = lambda value, payloads: (finished, unfinished)
        slot = slot_of(fed_adapter)
        await start(slot)
        asyncio.get_running_loop().call_later(1, fed_adapter.finish, "p0")
        with pytest.raises(WorkerError, match=f"^worker-0: a wrong answer: {reason}$"):
            await slot.run(lease_of("p0", "p1"), ignore)

    instantly(story())


def test_eviction_ends_every_wait_and_the_process(instantly: Any, fake_adapter: Any) -> None:
    async def evicted_from(wait: Any, starts: Any = ()) -> float:
        adapter, began = fake_adapter(starts, lease_s=1e5), now()
        slot = slot_of(adapter)
        if not starts:
            await start(slot)
        asyncio.get_running_loop().call_later(3.0, lambda: slot.leave(at_once=True))
        with pytest.raises(Evicted):
            await wait(slot)
        await slot.until_ended()
        assert not adapter.spawned[0][1].alive
        assert slot.evicted and slot.status().state == "leaving"
        return now() - began

    async def story() -> list[float]:
        return [
            await evicted_from(lambda slot: slot.run(lease_of("p0"), ignore)),
            await evicted_from(lambda slot: slot.next_lease(None)),
            await evicted_from(lambda slot: slot.start(), [1e5]),
        ]

    assert instantly(story()) == pytest.approx([3.0, 3.0, 3.0])


@pytest.mark.parametrize("first", ["patience", "lease"])
def test_lease_that_comes_as_patience_ends_is_not_lost(first: str, instantly: Any, fake_adapter: Any) -> None:
    async def story() -> Any:
        slot, loop = slot_of(fake_adapter()), asyncio.get_running_loop()
        await start(slot)
        if first == "lease":
            loop.call_at(5.0, slot.assign)
        waiting = asyncio.create_task(slot.next_lease(5.0))
        await asyncio.sleep(0)
        if first == "patience":
            loop.call_at(5.0, slot.assign)
        return await waiting, slot.state, now()

    assert instantly(story()) == (True, WorkerState.BUSY, 5.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (["p0 done"], "1 results for 2 tasks, the first that differs: p1"),
        (["p0 done", "p1 done", "p1 done"], "3 results for 2 tasks, the first that differs: p0"),
        (["p0 done", "p7 done"], "2 results for 2 tasks, the first that differs: p1"),
    ],
)
def test_wrong_answer_is_a_failure_as_a_whole(
    answer: list[str], reason: str, instantly: Any, fake_adapter: Any
) -> None:
    async def story() -> None:
        adapter = fake_adapter()
        adapter.receive = lambda value, payloads: (answer, ())
        slot = slot_of(adapter)
        await start(slot)
        with pytest.raises(WorkerError, match=f"^worker-0: a wrong answer: {reason}$"):
            await slot.run(lease_of("p0", "p1"), ignore)

    instantly(story())
