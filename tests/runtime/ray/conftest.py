"""Scripted rollout workers for the tests of the pool: tasks, what must come back, pools that end with their test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from saga_dist.config import RunConfig, parse_config
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
        from saga_dist.runtime.ray.fake_workers import FakeLearner, FaultPlan

        pairs = tuple(ImagePair(f"p{index:02d}", index, index + 1, 0, index % 2) for index in range(number))[first:]
        batch = MicroBatch(0, 0, tuple(range(number + 1)), (0,) * (number + 1), 0, pairs)
        encoded = FakeLearner(self.config(), FaultPlan()).encode(batch).handles
        return [RolloutTask(pair, tokens, SAMPLING) for pair, tokens in zip(pairs, encoded, strict=True)]

    def tasks(self, number: int, *, first: int = 0) -> list[RolloutTask]:
        """The same tasks with their tokens in the object store."""
        from saga_dist.runtime.ray.object_refs import put_tokens

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
        from saga_dist.runtime.ray.fake_workers import fake_group

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
        """What each place does, the oldest first."""
        return [seen.state for seen in pool.seen()]

    def pids(self, pool: Any) -> dict[str, int]:
        return {name: info.pid for name, info in pool.workers().items()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def make_pool(ray_cluster: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Makes pools of scripted rollout workers that have not been started; closed after the test."""
    from saga_dist.runtime.ray.fake_workers import FaultPlan, fake_factories
    from saga_dist.runtime.ray.pool import RayPool
    from saga_dist.runtime.ray.runtime import RolloutRole

    made: list[Any] = []

    def make(limits: Any, script: FaultPlan | None = None, *, missing: str = "", **rollout: Any) -> Any:
        made.append(RayPool(RolloutRole(Scene().config(**rollout), fake_factories(script), lambda: missing), limits))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
