"""One contract, two pools: serial and Ray. Then leases and workers that are fed, on Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime.ray.shared_pools import GENEROUS, Mode, OnRay, Pool, set_config

from saga_dist.errors import EngineError, TokenError, WorkerError
from saga_dist.runtime.ray.fake_workers import FakeRolloutWorker
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.types import Quarantined, RolloutTask, ScoredGroup
from saga_dist.workers.serial_pool import SerialPool, run_all

pytestmark = pytest.mark.cluster

Either = tuple[Pool, Callable[[int], list[RolloutTask]]]


@pytest.fixture(params=["serial", "fed", "whole"])
def either(request: pytest.FixtureRequest, script: FaultPlan, scene: Any) -> Either:
    """A pool of scripted rollout workers, and how to make tasks for it."""
    if request.param != "serial":
        return request.getfixturevalue("ready_pool")(request.param), scene.tasks
    for file in Path(script.folder).iterdir():
        file.unlink()
    worker = FakeRolloutWorker(scene.config(), script)
    serial: Pool = SerialPool(
        lambda tasks: worker.rollout(tasks, [task.tokens for task in tasks]), lease=16, max_attempts=3
    )
    return serial, scene.plain_tasks


def test_every_task_comes_back_once(either: Either, scene: Any) -> None:
    pool, tasks = either
    assert pool.collect() == []
    assert pool.poll() == []
    pool.submit(tasks(20))
    assert pool.num_pending == 20
    scene.assert_right(scene.drain(pool), 20)
    assert pool.num_pending == 0
    pool.submit(tasks(3))  # the same pairs again, later: a new request
    scene.assert_right(scene.drain(pool), 3)


def test_engine_that_raises_once_is_tried_again(either: Either, script: FaultPlan, scene: Any) -> None:
    pool, tasks = either
    script.plan("p01", "raise")
    pool.submit(tasks(4))
    scene.assert_right(scene.drain(pool), 4)
    assert script.num_triggered("p01") == 1


def test_poisoned_group_is_set_aside_with_its_cause_and_its_companions_finish(
    either: Either, script: FaultPlan
) -> None:
    pool, tasks = either
    script.plan("p02", "raise", times=99)
    pool.submit(tasks(4))
    found: list[ScoredGroup | Quarantined] = []
    while arrived := pool.collect():
        found += arrived
    (lost,) = [item for item in found if isinstance(item, Quarantined)]
    assert (lost.pair_id, lost.attempts) == ("p02", 3)
    assert "CUDA out of memory (scripted)" in lost.reason
    assert script.num_triggered("p02") == 3, "once among others, then alone on two"
    assert sorted(item.pair.pair_id for item in found if isinstance(item, ScoredGroup)) == ["p00", "p01", "p03"]
    assert pool.num_pending == 0


def test_whoever_wants_all_results_gets_an_error_for_a_poisoned_group(script: FaultPlan, scene: Any) -> None:
    def run(tasks: Any) -> Any:
        raise EngineError("CUDA out of memory", where="engine")

    with pytest.raises(WorkerError, match=r"^pair p00: failed on 3 workers, the last time: engine: CUDA out of memory"):
        run_all(SerialPool(run, lease=16, max_attempts=3), scene.plain_tasks(1))


def test_serial_pool_in_which_nothing_succeeds_ends(scene: Any) -> None:
    def run(tasks: Any) -> Any:
        raise EngineError("CUDA out of memory", where="engine")

    pool: Pool = SerialPool(run, lease=16, max_attempts=3, max_quarantined=1)
    pool.submit(scene.plain_tasks(4))
    assert len(pool.collect()) == 1
    with pytest.raises(WorkerError, match="2 groups failed on 3 workers each"):
        pool.collect()


def test_user_error_comes_at_once_and_as_itself(either: Either, script: FaultPlan, scene: Any) -> None:
    pool, tasks = either
    script.plan("p00", "user_error", times=99)
    pool.submit(tasks(1))
    with pytest.raises(TokenError) as caught:
        scene.drain(pool)
    assert type(caught.value) is TokenError
    assert str(caught.value) == "pair p00: width 7; expected width 6"
    assert script.num_triggered("p00") == 1
    assert pool.num_pending == 0
    pool.submit(tasks(4)[1:])
    assert len(scene.drain(pool)) == 3, "the pool lives on"


def test_forgotten_tasks_never_come_back(either: Either, script: FaultPlan, scene: Any) -> None:
    pool, tasks = either
    script.plan("p00", "slow", seconds=2)
    pool.submit(tasks(4))
    pool.forget()
    assert pool.num_pending == 0
    assert pool.collect() == []
    pool.submit(tasks(4))  # the same pairs, while the old lease may still run
    scene.assert_right(scene.drain(pool), 4)


def test_cancelled_tasks_never_come_back_and_the_others_do(either: Either, script: FaultPlan, scene: Any) -> None:
    pool, tasks = either
    script.plan("p00", "slow", seconds=2)
    pool.submit(tasks(4))
    pool.cancel(["p00", "p02", "a pair that was never submitted"])
    assert pool.num_pending == 2
    found: list[Any] = []
    while arrived := pool.collect():
        found += arrived
    assert sorted(group.pair.pair_id for group in found) == ["p01", "p03"]
    pool.submit(tasks(4))  # the same pairs, while the old lease may still run
    scene.assert_right(scene.drain(pool), 4)


def test_results_that_wait_to_be_collected_can_be_cancelled(pool: OnRay, scene: Any) -> None:
    pool.submit(scene.tasks(2))
    scene.until(lambda: len(pool._state._results) == 2)
    pool.cancel(["p00"])
    assert [group.pair.pair_id for group in scene.drain(pool)] == ["p01"]


def test_work_goes_on_while_nobody_waits(pool: OnRay, mode: Mode, script: FaultPlan, scene: Any) -> None:
    script.plan("p00", "slow", seconds=3)  # two that became idle together would share the last two tasks
    set_config(pool, replace(GENEROUS, tasks_per_lease=2))
    pool.submit(scene.tasks(12))
    found: list[Any] = []
    scene.until(lambda: found.extend(pool.poll()) or len(found) == 12)
    scene.assert_right(sorted(found, key=lambda group: group.pair.pair_id), 12)
    assert pool.metrics()["leases"] == (2 if mode == "fed" else 6)
    assert pool.poll() == []


def test_a_batch_is_split_evenly(pool: OnRay, scene: Any) -> None:
    pool.submit(scene.tasks(16))
    scene.assert_right(scene.drain(pool), 16)
    metrics = pool.metrics()
    assert {name: metrics[name] for name in ("leases", "workers", "retries", "replacements", "quarantined")} == {
        "leases": 2,
        "workers": 2,
        "retries": 0,
        "replacements": 0,
        "quarantined": 0,
    }
    assert 0 < metrics["busy_max_s"] <= metrics["busy_s"]
    assert 0 < metrics["idle_share"] < 1
    assert pool.metrics()["leases"] == 0, "counters are since the last call"


def test_in_flight_cap(pool: OnRay, mode: Mode, scene: Any) -> None:
    set_config(pool, replace(GENEROUS, tasks_per_lease=3))
    pool.submit(scene.tasks(16))
    scene.assert_right(scene.drain(pool), 16)
    metrics = pool.metrics()
    assert metrics["leases"] == (2 if mode == "fed" else 6)
    assert 0 < metrics["in_flight_share"] <= 1


def test_pair_submitted_twice_is_done_once(pool: OnRay, script: FaultPlan, scene: Any) -> None:
    script.plan("p00", "slow", seconds=1)
    tasks = scene.tasks(3)
    pool.submit(tasks)
    pool.submit(tasks[:1])
    scene.assert_right(scene.drain(pool), 3)
    assert pool.metrics()["duplicates"] == 1


def test_a_long_group_holds_nobody_up_and_is_aborted_when_it_is_cancelled(
    fed_pool: OnRay, script: FaultPlan, scene: Any
) -> None:
    """Two long groups fill both workers but for one place each, through which all others pass."""
    set_config(fed_pool, replace(GENEROUS, tasks_per_lease=2))
    for name in ("p00", "p02"):
        script.plan(name, "long", seconds=600)
    fed_pool.submit(scene.tasks(12))
    found: list[Any] = []
    while fed_pool.num_pending > 2:
        found += fed_pool.collect()
    assert {group.pair.pair_id for group in found} == {f"p{index:02d}" for index in range(12)} - {"p00", "p02"}
    assert scene.states(fed_pool) == ["busy", "busy"]
    fed_pool.cancel(["p00"])
    scene.until(lambda: "idle" in scene.states(fed_pool))
    script.clear()
    fed_pool.cancel(["p02"])
    fed_pool.submit(scene.tasks(12))
    scene.assert_right(scene.drain(fed_pool), 12)
    metrics = fed_pool.metrics()
    assert (metrics["replacements"], metrics["retries"], metrics["cancelled"]) == (0, 0, 2)


def test_groups_that_come_later_join_a_busy_worker(fed_pool: OnRay, script: FaultPlan, scene: Any) -> None:
    for name in ("p00", "p01"):
        script.plan(name, "long", seconds=600)
    fed_pool.submit(scene.tasks(2))
    scene.until(lambda: scene.states(fed_pool) == ["busy", "busy"])
    fed_pool.submit(scene.tasks(6, first=2))
    found: list[Any] = []
    while fed_pool.num_pending > 2:
        found += fed_pool.collect()
    assert sorted(group.pair.pair_id for group in found) == [f"p0{index}" for index in range(2, 6)]
    fed_pool.cancel(["p00", "p01"])
    scene.until(lambda: scene.states(fed_pool) == ["idle", "idle"])
