"""One contract, two pools: serial and Ray. Then what only Ray has to stand: processes that die, hang, lie."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from saga_dist.cluster.failures import own_error
from saga_dist.cluster.handles import publish_tokens
from saga_dist.cluster.pool import Limits, RayPool
from saga_dist.cluster.runtime import RolloutRole
from saga_dist.cluster.scripted import Script, ScriptedLearner, ScriptedRollout, scripted_factories, scripted_group
from saga_dist.cluster.supervision import Clocks, State
from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import EngineError, TokenError, WorkerError
from saga_dist.pools import SerialPool
from saga_dist.protocols import WorkerPool
from saga_dist.types import ImagePair, MicroBatch, RolloutTask, Sampling, ScoredGroup

pytestmark = pytest.mark.cluster

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)
GENEROUS = Limits(workers=2, tasks_per_lease=16, max_attempts=3, clocks=Clocks(start_s=150, lease_s=60, heartbeat_s=20))
Pool = WorkerPool[RolloutTask, ScoredGroup]
OnRay = RayPool[RolloutTask, ScoredGroup]


def config() -> RunConfig:
    return parse_config(
        {
            "data": {"layout": "birds", "image_size": 80},
            "rollout": {"workers": 2, "num_cpus": 0.5},
            "runtime": {"threads": 1},
        },
        where="test",
    )


def pairs(number: int) -> tuple[ImagePair, ...]:
    return tuple(ImagePair(f"p{index:02d}", index, index + 1, 0, index % 2) for index in range(number))


def plain_tasks(number: int) -> list[RolloutTask]:
    """Tasks whose handles are the records."""
    batch = MicroBatch(0, 0, tuple(range(number + 1)), (0,) * (number + 1), 0, pairs(number))
    encoded = ScriptedLearner(config(), Script()).encode(batch).handles
    return [RolloutTask(pair, tokens, SAMPLING) for pair, tokens in zip(batch.pairs, encoded, strict=True)]


def published_tasks(number: int) -> list[RolloutTask]:
    """The same tasks with their tokens in the object store."""
    return [replace(task, tokens=publish_tokens(task.tokens)) for task in plain_tasks(number)]


def drain(pool: Pool, groups: list[ScoredGroup] | None = None) -> list[ScoredGroup]:
    """Everything that is pending, in order of pair; ``groups`` collects what came before an error."""
    groups = [] if groups is None else groups
    while arrived := pool.collect():
        groups += arrived
    return sorted(groups, key=lambda group: group.pair.pair_id)


def assert_right(found: Sequence[ScoredGroup], number: int) -> None:
    """All groups of ``pairs(number)``, once each, as a worker in this process would have made them."""
    wanted = [scripted_group(task, task.tokens) for task in plain_tasks(number)]
    assert [group.pair for group in found] == [group.pair for group in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.completions.texts == theirs.completions.texts
        assert mine.rewards_G.tolist() == theirs.rewards_G.tolist()
        for ours, others in zip(mine.completions.log_probs, theirs.completions.log_probs, strict=True):
            assert ours.tolist() == others.tolist()


def bring_up(pool: OnRay) -> None:
    """Returns when every worker is idle."""
    pool.start()
    deadline = time.monotonic() + 60
    while not all(worker.state is State.IDLE for worker in pool._workers):
        assert time.monotonic() < deadline
        pool._turn()


def set_limits(pool: OnRay, limits: Limits) -> None:
    """Other numbers for running workers."""
    pool._limits = limits
    for worker in pool._workers:
        worker._clocks = limits.clocks


def pid_of(pool: OnRay, name: str) -> int:
    return pool.workers()[name].pid


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script(str(tmp_path_factory.mktemp("faults")))


@pytest.fixture(scope="module")
def shared_pool(ray_cluster: dict[str, str], script: Script) -> Iterator[OnRay]:
    pool: OnRay = RayPool(RolloutRole(config(), scripted_factories(script), lambda: ""), GENEROUS)
    yield pool
    pool.close()


@pytest.fixture
def pool(shared_pool: OnRay, script: Script) -> Iterator[OnRay]:
    """Two idle rollout workers, no faults planned, counters at zero. Processes are dear: all tests share them."""
    set_limits(shared_pool, GENEROUS)
    for file in Path(script.folder).iterdir():
        file.unlink()
    bring_up(shared_pool)
    shared_pool.metrics()
    assert shared_pool.num_pending == 0
    yield shared_pool
    set_limits(shared_pool, GENEROUS)


# ---------------------------------------------------------------------- the contract


@pytest.fixture(params=["serial", "ray"])
def either(request: pytest.FixtureRequest, script: Script) -> tuple[Pool, Callable[[int], list[RolloutTask]]]:
    """A pool of scripted rollout workers, and how to make tasks for it."""
    if request.param == "ray":
        return request.getfixturevalue("pool"), published_tasks
    for file in Path(script.folder).iterdir():
        file.unlink()
    worker = ScriptedRollout(config(), script)
    serial: Pool = SerialPool(
        lambda tasks: worker.rollout(tasks, [task.tokens for task in tasks]), lease=16, max_attempts=3
    )
    return serial, plain_tasks


Either = tuple[Pool, Callable[[int], list[RolloutTask]]]


def test_every_task_comes_back_once(either: Either) -> None:
    pool, tasks = either
    assert pool.collect() == []
    pool.submit(tasks(20))
    assert pool.num_pending == 20
    assert_right(drain(pool), 20)
    assert pool.num_pending == 0
    pool.submit(tasks(3))  # the same pairs again, later: a new request
    assert_right(drain(pool), 3)


def test_engine_that_raises_once_is_tried_again(either: Either, script: Script) -> None:
    pool, tasks = either
    script.plan("p01", "raise")
    pool.submit(tasks(4))
    assert_right(drain(pool), 4)
    assert script.strikes("p01") == 1


def test_engine_that_always_raises_is_an_error_with_its_cause(either: Either, script: Script) -> None:
    pool, tasks = either
    script.plan("p00", "raise", times=99)
    pool.submit(tasks(1))
    with pytest.raises(WorkerError, match=r"CUDA out of memory \(scripted\)"):
        drain(pool)
    assert script.strikes("p00") == 3


def test_user_error_comes_at_once_and_as_itself(either: Either, script: Script) -> None:
    pool, tasks = either
    script.plan("p00", "user_error", times=99)
    pool.submit(tasks(1))
    with pytest.raises(TokenError) as caught:
        drain(pool)
    assert type(caught.value) is TokenError
    assert str(caught.value) == "pair p00: width 7; expected width 6"
    assert script.strikes("p00") == 1


# ---------------------------------------------------------------------- leases


def test_a_batch_is_split_evenly(pool: OnRay) -> None:
    pool.submit(published_tasks(16))
    assert [len(lease.keys) for lease in pool._leases.values()] == [8, 8]
    assert_right(drain(pool), 16)
    metrics = pool.metrics()
    assert {name: metrics[f"pool/{name}"] for name in ("leases", "workers", "retries", "replacements")} == {
        "leases": 2,
        "workers": 2,
        "retries": 0,
        "replacements": 0,
    }
    assert metrics["pool/busy_s"] > 0
    assert pool.metrics()["pool/leases"] == 0, "counters are since the last call"


def test_in_flight_cap(pool: OnRay) -> None:
    set_limits(pool, replace(GENEROUS, tasks_per_lease=3))
    pool.submit(published_tasks(16))
    assert [len(lease.keys) for lease in pool._leases.values()] == [3, 3]
    assert_right(drain(pool), 16)
    assert pool.metrics()["pool/leases"] == 6


def test_pair_submitted_twice_is_done_once(pool: OnRay) -> None:
    tasks = published_tasks(3)
    pool.submit(tasks)
    pool.submit(tasks[:2])
    assert_right(drain(pool), 3)
    assert pool.metrics()["pool/duplicates"] == 2


# ---------------------------------------------------------------------- processes that die, hang, lie


def test_killed_worker_is_replaced_and_its_groups_are_leased_again(pool: OnRay, script: Script) -> None:
    script.plan("p00", "slow", seconds=30)
    victim = pid_of(pool, "rollout-0")
    pool.submit(published_tasks(8))
    while not script.strikes("p00"):
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    assert_right(drain(pool), 8)
    metrics = pool.metrics()
    assert (metrics["pool/replacements"], metrics["pool/retries"], metrics["pool/duplicates"]) == (1, 4, 0)
    assert metrics["pool/leases"] == 2 + 4, "each group of the lost lease is tried again alone"


def test_stopped_worker_is_noticed_by_its_pulse(pool: OnRay) -> None:
    # Nothing but the pulse can notice: the lease would last ten minutes.
    set_limits(pool, replace(GENEROUS, clocks=Clocks(start_s=150, lease_s=600, heartbeat_s=3)))
    victim = pid_of(pool, "rollout-1")
    os.kill(victim, signal.SIGSTOP)
    pool.submit(published_tasks(8))
    assert_right(drain(pool), 8)
    assert pool.metrics()["pool/replacements"] >= 1
    assert victim not in {info.pid for info in pool.workers().values()}


def test_worker_that_misses_its_deadline_is_replaced(pool: OnRay, script: Script) -> None:
    # Alive, its pulse answers, but far too slow on one group, once.
    script.plan("p02", "slow", seconds=600)
    set_limits(pool, replace(GENEROUS, clocks=Clocks(start_s=150, lease_s=5, heartbeat_s=60)))
    pool.submit(published_tasks(4))
    assert_right(drain(pool), 4)
    assert pool.metrics()["pool/replacements"] >= 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("garbage", "a wrong answer: 1 results for 1 tasks, the first that differs: p03"),
        ("bug", "ZeroDivisionError: scripted bug"),
        ("kill", "its process died"),
    ],
)
def test_group_that_breaks_every_worker_is_reported_and_the_others_finish(
    kind: str, reason: str, pool: OnRay, script: Script
) -> None:
    script.plan("p03", kind, times=99)
    pool.submit(published_tasks(4))
    found: list[ScoredGroup] = []
    with pytest.raises(WorkerError, match=rf"^pair p03: failed on 3 workers, the last time: rollout-\d: {reason}"):
        drain(pool, found)
    assert script.strikes("p03") == 3
    found += drain(pool)
    assert sorted(group.pair.pair_id for group in found) == ["p00", "p01", "p02"]


def test_late_answer_is_dropped_and_counted(pool: OnRay, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker behind a broken link: the kill does not reach it, and its answer comes after others did its work."""
    script.plan("p00", "slow", seconds=6)
    set_limits(pool, replace(GENEROUS, clocks=Clocks(start_s=150, lease_s=3, heartbeat_s=60)))
    kept = [worker.actor for worker in pool._workers]  # or the actor would end with its last handle
    with monkeypatch.context() as broken_link:
        broken_link.setattr("saga_dist.cluster.supervision.ray.kill", lambda actor, no_restart: None)
        pool.submit(published_tasks(4))
        assert_right(drain(pool), 4)
        set_limits(pool, GENEROUS)
        deadline = time.monotonic() + 60
        while pool._abandoned and time.monotonic() < deadline:
            pool._turn()
    assert pool.metrics()["pool/duplicates"] == 2
    assert pool.collect() == []
    del kept


# ---------------------------------------------------------------------- starting


@pytest.fixture
def lonely_pool(ray_cluster: dict[str, str], tmp_path: Path) -> Iterator[tuple[OnRay, Script]]:
    """One worker that has not been started."""
    script = Script(str(tmp_path))
    role = RolloutRole(config(), scripted_factories(script), lambda: "")
    pool: OnRay = RayPool(role, replace(GENEROUS, workers=1, max_attempts=2))
    yield pool, script
    pool.close()


def test_worker_that_never_starts_is_an_error_with_its_cause(lonely_pool: tuple[OnRay, Script]) -> None:
    pool, script = lonely_pool
    script.plan("start", "raise", times=99)
    pool.submit(published_tasks(1))
    with pytest.raises(WorkerError, match=r"^rollout: no worker could be started, the last time: .*CUDA out of memory"):
        drain(pool)
    assert script.strikes("start") == 2
    with pytest.raises(WorkerError, match="no worker is left"):
        drain(pool)


def test_user_error_while_starting_comes_as_itself(lonely_pool: tuple[OnRay, Script]) -> None:
    pool, script = lonely_pool
    script.plan("start", "user_error", times=99)
    pool.submit(published_tasks(1))
    with pytest.raises(TokenError, match="pair start: width 7"):
        drain(pool)
    assert script.strikes("start") == 1


def test_start_that_hangs_ends_by_its_deadline_and_says_what_the_cluster_lacks(ray_cluster: dict[str, str]) -> None:
    crowded = config().model_copy(update={"rollout": config().rollout.model_copy(update={"num_cpus": 99.0})})
    role = RolloutRole(crowded, scripted_factories(), lambda: "99 CPUs needed (1 rollout x 99), 4 there")
    pool: OnRay = RayPool(role, Limits(1, 1, 1, Clocks(start_s=2, lease_s=60, heartbeat_s=20)))
    pool.submit(published_tasks(1))
    with pytest.raises(WorkerError, match=r"not started within 2 s; 99 CPUs needed \(1 rollout x 99\), 4 there"):
        drain(pool)
    pool.close()


def test_engine_error_keeps_its_class_and_names_the_worker() -> None:
    from ray.exceptions import RayTaskError

    cause = RayTaskError("run", "traceback", EngineError("CUDA out of memory", where="engine"))
    error = own_error(RayTaskError("outer", "traceback", cause), where="rollout-0")
    assert type(error) is EngineError
    assert str(error) == "rollout-0: engine: CUDA out of memory"
