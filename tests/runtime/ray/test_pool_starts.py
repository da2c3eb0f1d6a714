"""The start and the end of a pool on Ray: workers that never start, errors of the loop, callers that wait."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from runtime.ray.shared_pools import GENEROUS

from saga_dist.errors import TokenError, WorkerError
from saga_dist.runtime.ray.actors import BaseActor, RolloutActor
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.fake_workers import fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan

pytestmark = pytest.mark.cluster

LONELY = replace(GENEROUS, workers=1, max_attempts=2)


def test_pool_in_which_nothing_succeeds_ends(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    for index in range(6):
        script.plan(f"p{index:02d}", "raise", times=99)
    pool = make_pool(replace(LONELY, max_quarantined=1, max_attempts=1, tasks_per_lease=1), script)
    pool.submit(scene.tasks(6))
    found: list[Any] = []
    with pytest.raises(WorkerError, match=r"^pair p01: 2 groups failed on 1 workers each, the last one: .*CUDA out of"):
        scene.drain(pool, found)
    assert [item.pair_id for item in found] in (["p00"], []), "an error comes before results that wait"


def test_worker_that_never_starts_is_an_error_with_its_cause(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("start", "raise", times=99)
    pool = make_pool(LONELY, script)
    pool.submit(scene.tasks(1))
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"^rollout: no worker could be started, the last time: .*CUDA out of"):
            pool.collect()
    assert script.num_triggered("start") == 2


def test_start_that_fails_once_is_tried_again(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("start", "raise", times=1)
    pool = make_pool(LONELY, script)
    pool.submit(scene.tasks(2))
    scene.assert_right(scene.drain(pool), 2)
    assert pool.metrics()["replacements"] == 1


def test_user_error_while_starting_comes_as_itself(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("start", "user_error", times=99)
    pool = make_pool(LONELY, script)
    pool.submit(scene.tasks(1))
    with pytest.raises(TokenError, match="pair start: width 7"):
        pool.collect()
    assert script.num_triggered("start") == 1


def test_start_that_hangs_ends_by_its_deadline_and_says_what_the_cluster_lacks(make_pool: Any, scene: Any) -> None:
    hurried = PoolConfig(1, 1, 9, Timeouts(start_s=2, lease_s=60, heartbeat_s=20))
    pool = make_pool(hurried, missing="99 CPUs needed (1 rollout x 99), 4 there", num_cpus=99.0)
    pool.submit(scene.tasks(1))
    with pytest.raises(WorkerError, match=r"not started within 2 s; 99 CPUs needed \(1 rollout x 99\), 4 there"):
        pool.collect()


def test_place_that_cannot_be_filled_blocks_nobody_and_is_filled_when_it_can(make_pool: Any, scene: Any) -> None:
    """The second worker finds its resource taken by another actor, beyond the deadline of its start."""
    blocker = ray.remote(num_cpus=0, resources={"replay": 4}, concurrency_groups={"control": 1})(BaseActor)
    blocking = blocker.remote(scene.config(), fake_factories(), "/")
    assert ray.get(blocking.health.remote(), timeout=90) > 0
    pool = make_pool(replace(GENEROUS, timeouts=Timeouts(start_s=30, lease_s=60, heartbeat_s=20)))
    kinds = iter([{}, {"replay": 1}])

    def spawn() -> Any:
        actor = ray.remote(num_cpus=0, resources=next(kinds, {"replay": 1}), concurrency_groups={"control": 1})
        return actor(RolloutActor).remote(scene.config(), fake_factories(), "/")

    pool._adapter.spawn = spawn
    pool.submit(scene.tasks(6))
    scene.assert_right(scene.drain(pool), 6)
    replacements = 0.0

    def a_start_ended_by_its_deadline() -> bool:
        nonlocal replacements
        replacements += pool.metrics()["replacements"]
        return replacements > 0

    scene.until(a_start_ended_by_its_deadline)
    pool.submit(scene.tasks(6))
    scene.assert_right(scene.drain(pool), 6)
    ray.kill(blocking)
    scene.until(lambda: scene.states(pool) == ["idle", "idle"], seconds=180)


def test_error_of_the_loop_reaches_the_caller(make_pool: Any, scene: Any) -> None:
    pool = make_pool(replace(GENEROUS, workers=1))

    def broken(actor: Any, tasks: Any, cancelled: Any) -> Any:
        raise ZeroDivisionError("a bug of ours")

    pool._adapter.send = broken
    pool.submit(scene.tasks(1))
    for call in (pool.collect, pool.collect, lambda: pool.submit([]), pool.poll):
        with pytest.raises(ZeroDivisionError, match="a bug of ours"):
            call()
    assert pool.workers() == {}
    pool.close()
    assert pool.collect() == []


def test_close_ends_workers_and_those_who_wait(make_pool: Any, script: FaultPlan, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("p00", "slow", seconds=600)
    pool = make_pool(replace(GENEROUS, workers=1), script)
    pool.submit(scene.tasks(2))
    waiting: list[Any] = []
    waiter = threading.Thread(target=lambda: waiting.append(pool.collect()))
    waiter.start()
    scene.until(lambda: script.num_triggered("p00"))
    (pid,) = scene.pids(pool).values()
    pool.close()
    waiter.join(timeout=30)
    assert waiting == [[]]
    assert pool.num_pending == 0
    scene.until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
    with pytest.raises(WorkerError, match="the pool is closed"):
        pool.submit(scene.tasks(1))
