"""Workers that come and go while tasks flow: scaling, idle release, a node that is taken away."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.fault_plan import FaultPlan

pytestmark = pytest.mark.cluster

CALM = PoolConfig(
    workers=1, tasks_per_lease=2, max_attempts=3, timeouts=Timeouts(start_s=150, lease_s=60, heartbeat_s=20)
)


class Flow:
    """A caller who keeps the pool busy: submits pair after pair, round and round, and counts what comes back."""

    def __init__(self, pool: Any, tasks: list[Any]) -> None:
        self._pool, self._tasks = pool, itertools.cycle(tasks)
        self.sent, self.found = Counter[str](), Counter[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            some = list(itertools.islice(self._tasks, 12 - self._pool.num_pending))
            self._pool.submit(some)
            self.sent.update(task.pair_id for task in some)
            self._note(self._pool.collect())

    def _note(self, groups: list[Any]) -> None:
        self.found.update(group.pair.pair_id for group in groups)

    def end(self) -> None:
        """Waits for what is under way: nothing is lost, nothing comes twice."""
        self._stop.set()
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()
        while arrived := self._pool.collect():
            self._note(arrived)
        assert self.found == self.sent


def test_one_to_three_to_one_while_tasks_flow(make_pool: Any, scene: Any) -> None:
    pool = make_pool(CALM, FaultPlan("", group_s=0.05), num_cpus=0.1)
    pool.start()
    scene.until(lambda: scene.states(pool) == ["idle"])
    first = scene.pids(pool)["rollout-0"]
    flow = Flow(pool, scene.tasks(100))
    pool.resize(3)
    scene.until(lambda: len(scene.pids(pool)) == 3, seconds=180)
    grown = flow.found.total()
    scene.until(lambda: flow.found.total() > grown + 20)
    scene.until(lambda: scene.states(pool) == ["busy"] * 3)  # one that idles between two leases would leave first
    pool.resize(1)
    scene.until(lambda: scene.states(pool) in (["idle"], ["busy"]))
    shrunk = flow.found.total()
    scene.until(lambda: flow.found.total() > shrunk + 20)
    assert scene.pids(pool) == {"rollout-0": first}, "the youngest left"
    flow.end()
    metrics = pool.metrics()
    assert (metrics["retries"], metrics["replacements"], metrics["duplicates"]) == (0, 0, 0)


def test_busy_worker_that_leaves_finishes_its_lease_or_returns_it(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    pool = make_pool(replace(CALM, workers=2, max_attempts=1), script, num_cpus=0.1)
    pool.start()
    scene.until(lambda: scene.states(pool) == ["idle", "idle"])
    script.plan("p00", "slow", seconds=3)
    script.plan("p02", "slow", seconds=3)
    pool.submit(scene.tasks(4))
    scene.until(lambda: script.num_triggered("p00") and script.num_triggered("p02"))
    pool.resize(1)
    scene.until(lambda: "leaving" in scene.states(pool))
    scene.assert_right(scene.drain(pool), 4)
    scene.until(lambda: scene.states(pool) == ["idle"])
    assert pool.metrics()["leases"] == 2, "it finished what it had begun"

    pool.resize(2)
    scene.until(lambda: scene.states(pool) == ["idle", "idle"])
    for name in ("p00", "p02"):
        script.plan(name, "slow", times=2, seconds=90)
    pool.submit(scene.tasks(4))
    scene.until(lambda: script.num_triggered("p00") == 2 and script.num_triggered("p02") == 2)
    pids = scene.pids(pool)
    pool.resize(1, at_once=True)
    scene.until(lambda: scene.states(pool) == ["busy"])
    assert scene.pids(pool) == {"rollout-0": pids["rollout-0"]}
    pool.resize(2)
    scene.until(lambda: any(group.pair.pair_id == "p02" for group in pool.poll()))
    assert pool.metrics()["quarantined"] == 0, "with one attempt per group, a returned lease costs none"


def test_idle_workers_are_released_and_come_back_when_needed(make_pool: Any, scene: Any, tmp_path: Path) -> None:
    pool = make_pool(replace(CALM, workers=2, min_workers=1, idle_release_s=2.0), num_cpus=0.1)
    pool.start()
    pool.submit(scene.tasks(8))
    scene.assert_right(scene.drain(pool), 8)
    scene.until(lambda: sorted(scene.states(pool)) == ["idle", "released"])
    assert len(scene.pids(pool)) == 1
    pool.submit(scene.tasks(1))
    assert len(scene.drain(pool)) == 1
    assert "released" in scene.states(pool), "one task needs one worker"
    flow = Flow(pool, scene.tasks(100))
    scene.until(lambda: len(scene.pids(pool)) == 2)
    flow.end()
    scene.until(lambda: sorted(scene.states(pool)) == ["idle", "released"])
    assert pool.metrics()["replacements"] == 0, "nobody failed"


def test_pool_may_release_everybody(make_pool: Any, scene: Any) -> None:
    pool = make_pool(replace(CALM, min_workers=0, idle_release_s=1.0), num_cpus=0.1)
    pool.submit(scene.tasks(2))
    scene.assert_right(scene.drain(pool), 2)
    scene.until(lambda: scene.states(pool) == ["released"])
    assert pool.call("health") > 0, "a question brings one back"
    pool.submit(scene.tasks(2))
    scene.assert_right(scene.drain(pool), 2)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Sockets lie below it and their paths are limited to 107 characters."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_node_that_is_taken_away_costs_nothing_but_time(short_folder: str) -> None:
    """Two raylets and a process of its own: this one is connected to another Ray."""
    script = Path(__file__).with_name("two_raylets.py")
    environment = {**os.environ, "RAY_TMPDIR": short_folder}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "2000 groups, once each, 0 set aside", done.stdout
