"""One contract, two pools: serial and Ray. Then what only Ray has to stand: processes that die, hang, lie."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import ray

from saga_dist.errors import EngineError, TokenError, WorkerError
from saga_dist.protocols import WorkerPool
from saga_dist.runtime.ray.actors import BaseActor, RolloutActor
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.adapters import RolloutAdapter
from saga_dist.runtime.ray.errors import to_saga_error
from saga_dist.runtime.ray.fake_workers import FakeRolloutWorker, fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import Quarantined, RolloutTask, ScoredGroup
from saga_dist.workers.serial_pool import SerialPool, run_all

pytestmark = pytest.mark.cluster

GENEROUS = PoolConfig(
    workers=2, tasks_per_lease=16, max_attempts=3, timeouts=Timeouts(start_s=150, lease_s=60, heartbeat_s=20)
)
Pool = WorkerPool[RolloutTask, ScoredGroup]
OnRay = RayPool[RolloutTask, ScoredGroup]


def set_config(pool: OnRay, config: PoolConfig) -> None:
    """Other numbers for running workers."""
    pool._config = pool._group._config = config
    for slot in pool._group._slots:
        slot._timeouts = config.timeouts
    pool._state.queue._max_quarantined = config.max_quarantined


def actors(pool: OnRay) -> list[Any]:
    return [slot.actor for slot in pool._group._slots]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> FaultPlan:
    return FaultPlan(str(tmp_path_factory.mktemp("faults")))


Mode = Literal["fed", "whole"]
"""Whether workers return groups one by one and take others meanwhile, or work on one lease after the other."""


@pytest.fixture(scope="module")
def pools(ray_cluster: dict[str, str], script: FaultPlan) -> Iterator[Callable[[Mode], OnRay]]:
    """Two rollout workers of each mode, started when they are first asked for."""
    from saga_dist.config import parse_config

    made: dict[Mode, OnRay] = {}

    def pool_of(mode: Mode) -> OnRay:
        if mode not in made:
            tree = {
                "data": {"layout": "birds", "image_size": 80},
                "rollout": {"workers": 2, "num_cpus": 0.25, "continuous_feeding": mode == "fed"},
                "runtime": {"threads": 1},
            }
            adapter = RolloutAdapter(parse_config(tree, where="test"), fake_factories(script), lambda: "")
            made[mode] = RayPool(adapter, replace(GENEROUS, max_quarantined=99))
            made[mode].start()
        return made[mode]

    yield pool_of
    for pool in made.values():
        pool.close()


@pytest.fixture
def ready_pool(pools: Any, script: FaultPlan, scene: Any) -> Iterator[Callable[[Mode], OnRay]]:
    """Two idle rollout workers, no faults planned, counters at zero. Processes are dear: all tests share them."""
    used: list[OnRay] = []

    def ready(mode: Mode) -> OnRay:
        pool: OnRay = pools(mode)
        used.append(pool)
        set_config(pool, replace(GENEROUS, max_quarantined=99))
        for file in Path(script.folder).iterdir():
            file.unlink()
        scene.until(lambda: scene.states(pool) == ["idle", "idle"])
        pool.metrics()
        assert pool.num_pending == 0
        return pool

    yield ready
    for pool in used:
        set_config(pool, GENEROUS)


@pytest.fixture(params=["fed", "whole"])
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pool(ready_pool: Any, mode: Mode) -> OnRay:
    return ready_pool(mode)  # type: ignore[no-any-return]


@pytest.fixture
def fed_pool(ready_pool: Any) -> OnRay:
    return ready_pool("fed")  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- the contract

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


# ---------------------------------------------------------------------- a thread of its own


def test_work_goes_on_while_nobody_waits(pool: OnRay, mode: Mode, script: FaultPlan, scene: Any) -> None:
    script.plan("p00", "slow", seconds=3)  # two that became idle together would share the last two tasks
    set_config(pool, replace(GENEROUS, tasks_per_lease=2))
    pool.submit(scene.tasks(12))
    found: list[Any] = []
    scene.until(lambda: found.extend(pool.poll()) or len(found) == 12)
    scene.assert_right(sorted(found, key=lambda group: group.pair.pair_id), 12)
    assert pool.metrics()["leases"] == (2 if mode == "fed" else 6)
    assert pool.poll() == []


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


# ---------------------------------------------------------------------- leases


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


# ---------------------------------------------------------------------- processes that die, hang, lie


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


# ---------------------------------------------------------------------- workers that are fed


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


# ---------------------------------------------------------------------- starting, ending

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


def test_engine_error_keeps_its_class_and_names_the_worker() -> None:
    from ray.exceptions import RayTaskError

    cause = RayTaskError("run", "traceback", EngineError("CUDA out of memory", where="engine"))
    error = to_saga_error(RayTaskError("outer", "traceback", cause), where="rollout-0")
    assert type(error) is EngineError
    assert str(error) == "rollout-0: engine: CUDA out of memory"
