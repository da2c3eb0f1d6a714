"""Nodes that are about to be taken away: no more leases there, replacements elsewhere, a checkpoint. No Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from saga_dist.errors import EngineError
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.draining import DrainWatch
from saga_dist.runtime.ray.pool import RayPool

CONFIG = PoolConfig(
    workers=2, tasks_per_lease=2, max_attempts=1, timeouts=Timeouts(start_s=60, lease_s=60, heartbeat_s=30)
)
Pool = RayPool[str, str]


@pytest.fixture
def pool_of(idle_pool: Any) -> Callable[..., Pool]:
    """Makes pools of workers that are idle."""
    return lambda adapter, **settings: idle_pool(adapter, replace(CONFIG, **settings))


def nodes(pool: Pool) -> list[str]:
    """The node of each worker that is up."""
    return [info.node_id for info in pool.workers().values()]


def test_an_idle_worker_on_a_draining_node_is_replaced_at_once(pool_of: Any, fake_adapter: Any, scene: Any) -> None:
    adapter = fake_adapter()
    pool = pool_of(adapter)
    pool.vacate({"node-0"})
    scene.until(lambda: sorted(nodes(pool)) == ["node-1", "node-2"])
    assert not adapter.spawned[0][1].alive
    metrics = pool.metrics()
    assert (metrics["drained"], metrics["replacements"]) == (1, 0), "it did not fail"
    assert pool.metrics()["drained"] == 0


def test_a_busy_worker_on_a_draining_node_finishes_its_lease_and_gets_no_more(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(fed_adapter)
    pool.submit([f"p{index}" for index in range(6)])
    scene.until(lambda: [len(fed_adapter.open[number]) for number in (0, 1)] == [2, 2])
    first, second = fed_adapter.open[0]
    pool.vacate({"node-0"})
    scene.until(lambda: "leaving" in scene.states(pool))
    fed_adapter.finish(first)
    assert pool.collect() == [f"{first} done"]
    assert fed_adapter.open[0] == [second], "others wait, and it gets none"
    fed_adapter.finish(second)
    assert pool.collect() == [f"{second} done"]
    scene.until(lambda: len(fed_adapter.open.get(2, [])) == 2)
    assert not fed_adapter.spawned[0][1].alive
    assert pool.metrics()["leases"] == 3


def test_a_lease_whose_node_goes_before_it_ends_costs_its_tasks_no_attempt(
    pool_of: Any, fed_adapter: Any, scene: Any
) -> None:
    pool = pool_of(fed_adapter, workers=1)
    pool.submit(["p0", "p1"])
    scene.until(lambda: fed_adapter.open[0] == ["p0", "p1"])
    pool.vacate({"node-0"})
    scene.until(lambda: pool._vacated == {"node-0"})
    fed_adapter.fail("p0", EngineError("the node is gone"))
    scene.until(lambda: fed_adapter.open.get(1) == ["p0", "p1"])
    fed_adapter.finish("p0", "p1")
    found: list[Any] = []
    while arrived := pool.collect():
        found += arrived
    assert found == ["p0 done", "p1 done"], "with one attempt per task, none is set aside"
    metrics = pool.metrics()
    assert (metrics["drained"], metrics["replacements"], metrics["retries"]) == (1, 0, 0)


def test_the_last_worker_of_a_pool_stays_until_another_one_is_up(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    """Both nodes go and there is no other one yet: the pool works on with one of its workers."""
    pool, spawn = pool_of(fed_adapter), fed_adapter.spawn
    fed_adapter.spawn = fed_adapter.silent
    pool.vacate({"node-0", "node-1"})
    scene.until(lambda: scene.states(pool) == ["idle", "starting"])
    pool.submit(["p0"])
    scene.until(lambda: fed_adapter.open[0] == ["p0"])
    fed_adapter.finish("p0")
    assert pool.collect() == ["p0 done"]
    fed_adapter.spawn = spawn
    pool.resize(3)
    scene.until(lambda: nodes(pool) == ["node-3", "node-2"])
    assert pool.metrics()["drained"] == 2


def test_a_worker_that_comes_up_on_a_draining_node_is_replaced_too(pool_of: Any, fake_adapter: Any, scene: Any) -> None:
    pool = pool_of(fake_adapter())
    pool.vacate({"node-0", "node-2"})
    scene.until(lambda: nodes(pool) == ["node-3", "node-1"])
    assert pool.metrics()["drained"] == 2


class Recorder:
    """A pool that notes which nodes it was told to vacate."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []

    def vacate(self, node_ids: Any) -> None:
        self.calls.append(set(node_ids))


def watch_of(pool: Any, listed: dict[str, int]) -> DrainWatch:
    """A watch that sees the nodes in ``listed``; the learner is on node L."""
    return DrainWatch([pool], heartbeat_s=30, draining=lambda: dict(listed), with_state=lambda: {"L"})


def test_each_notice_reaches_the_pools_once_and_is_logged_with_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    pool, listed = Recorder(), dict[str, int]()
    watch = watch_of(pool, listed)
    watch.poll()
    listed["A"] = 1_000_000_000_000
    with caplog.at_level(logging.WARNING, "saga_dist"):
        watch.poll()
        watch.poll()
        listed["B"] = 0
        watch.poll()
        del listed["A"]
        watch.poll()
    assert pool.calls == [{"A"}, {"B"}]
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "node A is about to be taken away at 01:46:40 UTC",
        "node B is about to be taken away",
    ]
    assert not watch.take_checkpoint_request(), "the learner is on none of them"


def test_a_node_that_is_gone_is_still_known_to_have_been_taken_away(pool_of: Any, fed_adapter: Any, scene: Any) -> None:
    """Ray's list no longer has it when its worker fails."""
    pool = pool_of(fed_adapter, workers=1)
    pool.submit(["p0"])
    scene.until(lambda: fed_adapter.open[0] == ["p0"])
    listed = {"node-0": 0}
    watch = watch_of(pool, listed)
    watch.poll()
    listed.clear()
    listed["node-9"] = 0
    watch.poll()
    fed_adapter.fail("p0", EngineError("the node is gone"))
    scene.until(lambda: fed_adapter.open.get(1) == ["p0"])


def test_a_notice_for_the_learners_node_asks_for_one_checkpoint() -> None:
    listed = {"A": 0}
    watch = watch_of(Recorder(), listed)
    watch.poll()
    listed["L"] = 0
    watch.poll()
    assert [watch.take_checkpoint_request() for _ in range(2)] == [True, False]
    listed["B"] = 0
    watch.poll()
    assert not watch.take_checkpoint_request(), "the notice for L is the same"


def test_a_cluster_that_cannot_be_asked_is_asked_again(scene: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool, answers = Recorder(), iter([RuntimeError("not connected"), RuntimeError("not connected"), {"A": 0}])

    def ask() -> dict[str, int]:
        match next(answers, {"A": 0}):
            case dict() as listed:
                return listed
            case error:
                raise error

    watch = DrainWatch([pool], heartbeat_s=0.01, draining=ask, with_state=set)
    watch.start()
    scene.until(lambda: pool.calls == [{"A"}])
    watch.close()
    assert not watch._thread.is_alive()
    assert sum("not connected" in message for message in caplog.messages) == 1
