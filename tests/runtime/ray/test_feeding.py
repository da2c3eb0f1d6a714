"""Workers that are fed: tasks join and leave their leases one by one. Fake actors that finish on command, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from saga_dist.errors import EngineError, TokenError
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import Quarantined

CONFIG = PoolConfig(
    workers=1, tasks_per_lease=3, max_attempts=3, timeouts=Timeouts(start_s=60, lease_s=60, heartbeat_s=30)
)
Pool = RayPool[str, str]


@pytest.fixture
def pool_of(idle_pool: Any, fed_adapter: Any) -> Callable[..., Pool]:
    """Makes a pool of fed workers that are idle."""
    return lambda **settings: idle_pool(fed_adapter, replace(CONFIG, **settings))


def in_flight(adapter: Any) -> set[str]:
    """The tasks that actors have."""
    return {task for tasks in tuple(adapter.open.values()) for task in tuple(tasks)}


def test_a_short_group_comes_back_before_a_long_one_of_its_lease(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    pool = pool_of()
    pool.submit(["long", "short"])
    scene.until(lambda: in_flight(fed_adapter) == {"long", "short"})
    fed_adapter.finish("short")
    assert pool.collect() == ["short done"]
    assert pool.num_pending == 1
    fed_adapter.finish("long")
    assert pool.collect() == ["long done"]
    assert pool.collect() == []


def test_a_worker_has_a_full_lease_as_long_as_tasks_wait(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    """The first task takes longer than all others together; they pass it by."""
    pool, tasks = pool_of(), [f"p{index}" for index in range(8)]
    pool.submit(tasks)
    found: list[str] = []
    for number, task in enumerate(tasks[1:] + tasks[:1]):
        scene.until(lambda number=number: len(in_flight(fed_adapter)) == min(3, 8 - number))
        fed_adapter.finish(task)
        found += pool.collect()
    assert found == [f"{task} done" for task in tasks[1:] + tasks[:1]]
    assert [len(tasks) for tasks in fed_adapter.seen] == [3] * 6 + [2, 1], "no call with fewer tasks than it could have"
    metrics = pool.metrics()
    assert (metrics["leases"], metrics["duplicates"], metrics["replacements"]) == (1, 0, 0)
    assert fed_adapter.num_interruptions == 0, "results alone make room for others"


def test_tasks_join_a_batch_that_has_room_at_once(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    pool = pool_of()
    for number in range(3):
        pool.submit([f"p{number}"])
        scene.until(lambda number=number: in_flight(fed_adapter) == {f"p{index}" for index in range(number + 1)})
    pool.submit(["p3"])
    fed_adapter.finish("p0", "p2")
    scene.until(lambda: in_flight(fed_adapter) == {"p1", "p3"})
    fed_adapter.finish("p1", "p3")
    found: list[str] = []
    while arrived := pool.collect():
        found += arrived
    assert sorted(found) == [f"p{index} done" for index in range(4)]


def test_tasks_are_shared_among_the_workers_also_while_they_are_busy(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(workers=2, tasks_per_lease=9)
    pool.submit(["p0"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0"})
    pool.submit([f"p{index}" for index in range(1, 8)])
    scene.until(lambda: len(in_flight(fed_adapter)) == 8)
    assert sorted(len(tasks) for tasks in fed_adapter.open.values()) == [4, 4]


def test_a_cancelled_group_leaves_the_engine_and_another_takes_its_place(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(tasks_per_lease=2)
    pool.submit(["p0", "p1", "p2"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0", "p1"})
    pool.cancel(["p0"])
    scene.until(lambda: in_flight(fed_adapter) == {"p1", "p2"})
    assert fed_adapter.aborted == ["p0"]
    fed_adapter.finish("p1", "p2")
    found: list[str] = []
    while arrived := pool.collect():
        found += arrived
    assert sorted(found) == ["p1 done", "p2 done"]
    assert pool.metrics()["cancelled"] == 1


def test_a_worker_whose_groups_are_all_forgotten_is_free_at_once(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    pool = pool_of()
    pool.submit(["p0", "p1"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0", "p1"})
    pool.forget()
    scene.until(lambda: scene.states(pool) == ["idle"])
    pool.submit(["p2"])
    scene.until(lambda: in_flight(fed_adapter) == {"p2"})
    assert sorted(fed_adapter.aborted) == ["p0", "p1"]


def test_a_result_that_was_finished_as_its_task_was_cancelled_is_not_that_of_a_later_one(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    """The pair is submitted again, with a task that is another object, before the old result arrives."""
    pool = pool_of()
    old, new = "".join(["p", "0"]), "".join(["p", "0"])
    assert old is not new
    pool.submit([old])
    scene.until(lambda: in_flight(fed_adapter) == {"p0"})
    with pool._lock:  # the loop does not learn of it before the old result is there
        pool.cancel(["p0"])
        pool.submit([new])
        fed_adapter.finish("p0")
        fed_adapter._loop.call_soon_threadsafe(lambda: None)
    scene.until(lambda: len(fed_adapter.seen) >= 2 and in_flight(fed_adapter) == {"p0"})
    assert pool.poll() == [], "the old result is dropped"
    fed_adapter.finish("p0")
    assert pool.collect() == ["p0 done"]
    assert pool.num_pending == 0


def test_groups_that_failed_together_are_tried_alone_before_others(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    pool = pool_of(tasks_per_lease=2)
    pool.submit(["p0", "p1", "p2"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0", "p1"})
    fed_adapter.fail("p0", EngineError("CUDA out of memory"))
    found: list[Any] = []
    for task in ("p0", "p1", "p2"):
        scene.until(lambda task=task: in_flight(fed_adapter) == {task})
        fed_adapter.finish(task)
        found += pool.collect()
    assert found == ["p0 done", "p1 done", "p2 done"]
    metrics = pool.metrics()
    assert (metrics["replacements"], metrics["retries"]) == (1, 2)


def test_no_lease_is_extended_while_a_group_waits_to_be_tried_alone(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    """One worker fails and cannot be replaced; the other finishes what it has and takes the failed groups."""
    pool = pool_of(workers=2, tasks_per_lease=2)
    pool.submit([f"p{index}" for index in range(6)])
    scene.until(lambda: in_flight(fed_adapter) == {"p0", "p1", "p2", "p3"})
    fed_adapter.spawn = lambda: fed_adapter.silent()  # type: ignore[method-assign]
    fed_adapter.fail("p0", EngineError("CUDA out of memory"))
    scene.until(lambda: in_flight(fed_adapter) == {"p2", "p3"})
    fed_adapter.finish("p2")
    assert pool.collect() == ["p2 done"]
    assert in_flight(fed_adapter) == {"p3"}
    fed_adapter.finish("p3")
    scene.until(lambda: in_flight(fed_adapter) == {"p0"})


def test_a_group_that_always_fails_is_set_aside_and_the_others_are_not(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of()
    pool.submit(["p0", "p1"])
    for companions in ({"p0", "p1"}, {"p0"}, {"p1"}, {"p0"}):  # together, then each alone, then the last attempt
        scene.until(lambda companions=companions: in_flight(fed_adapter) == companions)
        if "p0" in companions:
            fed_adapter.fail("p0", EngineError("CUDA out of memory"))
        else:
            fed_adapter.finish("p1")
        scene.until(lambda companions=companions: in_flight(fed_adapter) != companions)
    found: list[Any] = []
    while arrived := pool.collect():
        found += arrived
    assert found[0] == "p1 done"
    assert (found[1].pair_id, found[1].attempts) == ("p0", 3)


def test_a_group_that_was_not_sent_yet_costs_no_attempt_when_its_worker_fails(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(max_attempts=1)
    pool.submit(["p0"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0"})
    fed_adapter.interrupt = lambda actor: actor.answer(0.0, None)  # lost: the worker does not learn of p1
    pool.submit(["p1"])
    scene.until(lambda: not pool._state.queue.num_waiting)
    fed_adapter.fail("p0", EngineError("CUDA out of memory"))
    (lost,) = pool.collect()
    assert isinstance(lost, Quarantined) and lost.pair_id == "p0"
    scene.until(lambda: in_flight(fed_adapter) == {"p1"})
    fed_adapter.finish("p1")
    assert pool.collect() == ["p1 done"]


def test_a_users_mistake_ends_the_groups_of_its_worker_and_not_the_worker(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(tasks_per_lease=2)
    pool.submit(["p0", "p1", "p2"])
    scene.until(lambda: in_flight(fed_adapter) == {"p0", "p1"})
    fed_adapter.refuse("p0", TokenError("width 7"))
    with pytest.raises(TokenError, match="width 7"):
        pool.collect()
    scene.until(lambda: in_flight(fed_adapter) == {"p2"})
    assert fed_adapter.aborted == ["p0", "p1"], "what the worker may still have is cancelled with its next task"
    fed_adapter.finish("p2")
    assert pool.collect() == ["p2 done"]
    assert pool.metrics()["replacements"] == 0


def test_a_worker_that_leaves_gets_no_more_and_finishes_what_it_has(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    pool = pool_of(workers=2, tasks_per_lease=2)
    pool.submit([f"p{index}" for index in range(6)])
    scene.until(lambda: len(in_flight(fed_adapter)) == 4)
    pool.resize(1)
    scene.until(lambda: "leaving" in scene.states(pool))
    fed_adapter.finish("p2")
    assert pool.collect() == ["p2 done"]
    fed_adapter.finish("p0")
    scene.until(lambda: in_flight(fed_adapter) == {"p1", "p3", "p4"})
    fed_adapter.finish("p3")
    scene.until(lambda: scene.states(pool) == ["busy"])
    assert in_flight(fed_adapter) == {"p1", "p4"}
