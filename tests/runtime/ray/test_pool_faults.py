"""What a pool on Ray has to stand: processes that die, hang, lie."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import ray
from runtime.ray.shared_pools import GENEROUS, Mode, OnRay, actors, set_config

from saga_dist.errors import EngineError
from saga_dist.runtime.ray.adapter import Timeouts
from saga_dist.runtime.ray.errors import to_saga_error
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.types import Quarantined

pytestmark = pytest.mark.cluster


def test_killed_worker_is_replaced_and_its_groups_are_leased_again(pool: OnRay, script: FaultPlan, scene: Any) -> None:
    script.plan("p00", "slow", seconds=60)
    victim = scene.pids(pool)["rollout-0"]
    pool.submit(scene.tasks(8))
    scene.until(lambda: script.num_triggered("p00"))
    os.kill(victim, signal.SIGKILL)
    scene.assert_right(scene.drain(pool), 8)
    metrics = pool.metrics()
    assert (metrics["replacements"], metrics["retries"], metrics["duplicates"]) == (1, 4, 0)
    assert metrics["leases"] == 2 + 4, "each group of the lost lease is tried again alone"


def test_stopped_worker_is_noticed_by_its_pulse(pool: OnRay, scene: Any) -> None:
    # Nothing but the pulse can notice: the lease would last ten minutes.
    set_config(pool, replace(GENEROUS, timeouts=Timeouts(start_s=150, lease_s=600, heartbeat_s=3)))
    victim = scene.pids(pool)["rollout-1"]
    os.kill(victim, signal.SIGSTOP)
    pool.submit(scene.tasks(8))
    scene.assert_right(scene.drain(pool), 8)
    assert pool.metrics()["replacements"] >= 1
    assert victim not in scene.pids(pool).values()


def test_worker_that_misses_its_deadline_is_replaced(pool: OnRay, script: FaultPlan, scene: Any) -> None:
    # Alive, its pulse answers, but far too slow on one group, once.
    script.plan("p02", "slow", seconds=600)
    set_config(pool, replace(GENEROUS, timeouts=Timeouts(start_s=150, lease_s=5, heartbeat_s=60)))
    pool.submit(scene.tasks(4))
    scene.assert_right(scene.drain(pool), 4)
    assert pool.metrics()["replacements"] >= 1


@pytest.mark.parametrize(
    ("kind", "mode", "reason"),
    [
        ("garbage", "whole", "a wrong answer: 2 results for 2 tasks, the first that differs: p03"),
        ("garbage", "fed", "a wrong answer: 1 results for 1 tasks, the first that differs: p03"),
        ("short", "whole", "a wrong answer: 1 results for 2 tasks, the first that differs: p03"),
        ("short", "fed", "a wrong answer: 0 results for 1 tasks, the first that differs: p03"),
        ("twice", "fed", "a wrong answer: 2 results for 1 tasks, the first that differs: p03"),
        ("bug", "whole", "ZeroDivisionError: scripted bug"),
        ("bug", "fed", "ZeroDivisionError: scripted bug"),
    ],
)
def test_worker_that_lies_or_breaks_is_replaced(
    kind: Any, mode: Mode, reason: str, ready_pool: Any, script: FaultPlan, scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ready_pool(mode)
    script.plan("p03", kind)
    pool.submit(scene.tasks(4))
    scene.assert_right(scene.drain(pool), 4)
    assert reason in caplog.text
    assert script.num_triggered("p03") == 1
    assert pool.metrics()["replacements"] == 1


def test_group_that_kills_every_worker_is_set_aside(pool: OnRay, script: FaultPlan, scene: Any) -> None:
    script.plan("p03", "kill", times=99)
    pool.submit(scene.tasks(4))
    found: list[Any] = []
    while arrived := pool.collect():
        found += arrived
    (lost,) = [item for item in found if isinstance(item, Quarantined)]
    assert (lost.pair_id, lost.attempts, script.num_triggered("p03")) == ("p03", 3, 3)
    assert "its process died" in lost.reason
    found.remove(lost)
    assert sorted(group.pair.pair_id for group in found) == ["p00", "p01", "p02"]
    assert pool.metrics()["quarantined"] == 1


def test_late_answer_is_dropped_and_counted(
    pool: OnRay, mode: Mode, script: FaultPlan, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker behind a broken link: the kill does not reach it, and its answer comes after others did its work."""
    script.plan("p00", "slow", seconds=10)
    set_config(pool, replace(GENEROUS, timeouts=Timeouts(start_s=150, lease_s=5, heartbeat_s=60)))
    kept = actors(pool)  # or the actor would end with its last handle
    with monkeypatch.context() as broken_link:
        broken_link.setattr("saga_dist.runtime.ray.adapter.ray.kill", lambda actor, no_restart: None)
        pool.submit(scene.tasks(4))
        scene.assert_right(scene.drain(pool), 4)
        duplicates = 0.0

        def all_were_dropped() -> bool:
            nonlocal duplicates
            duplicates += pool.metrics()["duplicates"]
            return duplicates == (1 if mode == "fed" else 2)

        scene.until(all_were_dropped)
    assert pool.collect() == []
    for actor in kept:
        if actor not in actors(pool):
            ray.kill(actor)


def test_question_goes_to_another_worker_when_the_first_one_dies(pool: OnRay, scene: Any) -> None:
    assert pool.call("health") > 0
    for pid in scene.pids(pool).values():
        os.kill(pid, signal.SIGKILL)
    assert pool.call("health") > 0
    scene.until(lambda: scene.states(pool) == ["idle", "idle"])


def test_idle_worker_that_dies_is_replaced_before_anybody_asks(pool: OnRay, scene: Any) -> None:
    set_config(pool, replace(GENEROUS, timeouts=Timeouts(start_s=150, lease_s=600, heartbeat_s=2)))
    pool.submit(scene.tasks(1))  # from here on with the new heartbeat
    scene.drain(pool)
    victim = scene.pids(pool)["rollout-0"]
    os.kill(victim, signal.SIGKILL)
    scene.until(lambda: scene.pids(pool).get("rollout-0", victim) != victim)
    assert pool.num_pending == 0
    metrics = pool.metrics()
    assert (metrics["replacements"], metrics["retries"]) == (1, 0)


def test_a_killed_worker_costs_only_the_groups_that_it_had(fed_pool: OnRay, script: FaultPlan, scene: Any) -> None:
    script.plan("p00", "long", seconds=600)
    fed_pool.submit(scene.tasks(8))
    found: list[Any] = []
    while fed_pool.num_pending > 1:
        found += fed_pool.collect()
    script.clear()
    os.kill(scene.pids(fed_pool)["rollout-0"], signal.SIGKILL)
    found += scene.drain(fed_pool)
    scene.assert_right(sorted(found, key=lambda group: group.pair.pair_id), 8)
    metrics = fed_pool.metrics()
    assert (metrics["replacements"], metrics["retries"]) == (1, 1)


def test_engine_error_keeps_its_class_and_names_the_worker() -> None:
    from ray.exceptions import RayTaskError

    cause = RayTaskError("run", "traceback", EngineError("CUDA out of memory", where="engine"))
    error = to_saga_error(RayTaskError("outer", "traceback", cause), where="rollout-0")
    assert type(error) is EngineError
    assert str(error) == "rollout-0: engine: CUDA out of memory"
