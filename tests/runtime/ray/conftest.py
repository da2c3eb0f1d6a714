"""Scripted rollout workers for the tests of the pool: tasks, what must come back, pools that end with their test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime.ray.fake_actors import FakeAdapter, FedAdapter, InstantLoop
from runtime.ray.shared_pools import GENEROUS, Mode, OnRay, set_config

from saga_dist.config import RunConfig, parse_config
from saga_dist.runtime.ray.adapter import PoolConfig
from saga_dist.runtime.ray.adapters import RolloutAdapter
from saga_dist.runtime.ray.fake_workers import FakeLearner, fake_factories, fake_group
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.object_refs import put_tokens
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import ImagePair, MicroBatch, RolloutTask, Sampling, ScoredGroup

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)


class Scene:
    """What the tests of the pool share."""

    def config(self, **rollout: Any) -> RunConfig:
        return parse_config(
            {
                "data": {"layout": "birds", "image_size": 80},
                "rollout": {"workers": 2, "num_cpus": 0.5, **rollout},
                "runtime": {"threads": 1},
            },
            where="test",
        )

    def plain_tasks(self, number: int, *, first: int = 0) -> list[RolloutTask]:
        """Tasks whose handles are the records."""
        pairs = tuple(ImagePair(f"p{index:02d}", index, index + 1, 0, index % 2) for index in range(number))[first:]
        batch = MicroBatch(0, 0, tuple(range(number + 1)), (0,) * (number + 1), 0, pairs)
        encoded = FakeLearner(self.config(), FaultPlan()).encode(batch).handles
        return [RolloutTask(pair, tokens, SAMPLING) for pair, tokens in zip(pairs, encoded, strict=True)]

    def tasks(self, number: int, *, first: int = 0) -> list[RolloutTask]:
        """The same tasks with their tokens in the object store."""
        plain = self.plain_tasks(number, first=first)
        return [replace(task, tokens=put_tokens(task.tokens)) for task in plain]

    def drain(self, pool: Any, groups: list[Any] | None = None) -> list[Any]:
        """Everything that is pending, in order of pair; ``groups`` collects what came before an error."""
        groups = [] if groups is None else groups
        while arrived := pool.collect():
            groups += arrived
        return sorted(groups, key=lambda group: group.pair.pair_id)

    def assert_right(self, found: Sequence[ScoredGroup], number: int) -> None:
        """All groups of ``tasks(number)``, once each, as a worker in this process would have made them."""
        wanted = [fake_group(task, task.tokens) for task in self.plain_tasks(number)]
        assert [group.pair for group in found] == [group.pair for group in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.completions.texts == theirs.completions.texts
            assert mine.rewards_G.tolist() == theirs.rewards_G.tolist()
            for ours, others in zip(mine.completions.log_probs, theirs.completions.log_probs, strict=True):
                assert ours.tolist() == others.tolist()

    def until(self, condition: Callable[[], Any], *, seconds: float = 90) -> None:
        """Returns as soon as ``condition`` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def states(self, pool: Any) -> list[str]:
        """What each slot does, the oldest first."""
        return [worker.state for worker in pool.status()]

    def pids(self, pool: Any) -> dict[str, int]:
        return {name: info.pid for name, info in pool.workers().items()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def make_pool(ray_cluster: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Makes pools of scripted rollout workers that have not been started; closed after the test."""
    made: list[Any] = []

    def make(config: Any, script: FaultPlan | None = None, *, missing: str = "", **rollout: Any) -> Any:
        made.append(RayPool(RolloutAdapter(Scene().config(**rollout), fake_factories(script), lambda: missing), config))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def instantly() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine without waiting, and fails when it would wait for ever."""

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=InstantLoop) as runner:
            return runner.run(work)

    return run


@pytest.fixture
def fake_adapter() -> Callable[..., FakeAdapter]:
    """Makes adapters of fake actors."""
    return FakeAdapter


@pytest.fixture
def fed_adapter() -> FedAdapter:
    """An adapter of fake actors that are fed."""
    return FedAdapter()


@pytest.fixture
def idle_pool(scene: Any) -> Iterator[Callable[..., RayPool[Any, Any]]]:
    """Starts pools from an adapter and a configuration, with workers that are idle; closed after the test."""
    made: list[RayPool[Any, Any]] = []

    def make(adapter: Any, config: PoolConfig) -> RayPool[Any, Any]:
        made.append(RayPool(adapter, config))
        made[-1].start()
        scene.until(lambda: scene.states(made[-1]) == ["idle"] * config.workers)
        return made[-1]

    yield make
    for pool in made:
        pool.close()


# ---------------------------------------------------------------------- pools that several files share


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> FaultPlan:
    return FaultPlan(str(tmp_path_factory.mktemp("faults")))


@pytest.fixture(scope="session")
def pools(ray_cluster: dict[str, str], script: FaultPlan) -> Iterator[Callable[[Mode], OnRay]]:
    """Two rollout workers of each mode, started when they are first asked for."""
    made: dict[Mode, OnRay] = {}

    def pool_of(mode: Mode) -> OnRay:
        if mode not in made:
            tree = {
                "data": {"layout": "birds", "image_size": 80},
                "rollout": {"workers": 2, "num_cpus": 0.0, "continuous_feeding": mode == "fed"},
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


@pytest.fixture(params=["fed", pytest.param("whole", marks=pytest.mark.slow)])
def mode(request: pytest.FixtureRequest) -> Mode:
    """The default, groups one by one, and whole leases, which ``test_pool.py`` has without faults."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pool(ready_pool: Any, mode: Mode) -> OnRay:
    return ready_pool(mode)  # type: ignore[no-any-return]


@pytest.fixture
def fed_pool(ready_pool: Any) -> OnRay:
    return ready_pool("fed")  # type: ignore[no-any-return]
