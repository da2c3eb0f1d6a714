"""vLLM in a pool: fed group by group it gives the groups of whole leases, and aborts what is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_dist.config import parse_config
from saga_dist.models.families import resolve_family
from saga_dist.runtime.build import build_rollout_worker
from saga_dist.runtime.ray.actors import Factories
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.adapters import RolloutAdapter
from saga_dist.runtime.ray.object_refs import put_tokens
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import EncoderTokens, ImagePair, RolloutTask, Sampling, ScoredGroup
from saga_dist.utils.rng import counter_generator

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow]  # two processes import vLLM

Pool = RayPool[RolloutTask, ScoredGroup]
NUM_TASKS, LONG, SHORT = 8, 150, 4
"""Number of tasks, and the longest completions of the first one and of the others, tokens."""


@contextmanager
def pool_of(checkpoint: Path, *, is_fed: bool) -> Iterator[Pool]:
    """One worker with vLLM, with up to three groups in flight."""
    tree = {
        "data": {"layout": "birds", "image_size": 80},
        "prompt": {"vocabulary": "standin_birds"},
        "model": {"path": str(checkpoint), "dtype": "float32"},
        "rollout": {"engine": "vllm", "max_model_len": 320, "groups_per_lease": 3, "continuous_feeding": is_fed},
        "runtime": {"threads": 1},
    }
    adapter = RolloutAdapter(parse_config(tree, where="test"), Factories(rollout=build_rollout_worker), lambda: "")
    config = PoolConfig(1, tasks_per_lease=3, max_attempts=1, timeouts=Timeouts(400.0, 120.0, 60.0))
    pool: Pool = RayPool(adapter, config)
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture
def tasks(ray_cluster: dict[str, str], tiny_checkpoint: Path) -> Callable[[], list[RolloutTask]]:
    """Makes tasks with random tokens, of which the first one is long."""
    layout = resolve_family(tiny_checkpoint).layout

    def make() -> list[RolloutTask]:
        made = []
        for index in range(NUM_TASKS):
            name = f"p{index}"
            values_NW = torch.from_numpy(counter_generator("tokens", index).standard_normal((50, layout.wire_width)))
            grids = ((1, 10, 10), (1, 10, 10))
            tokens = EncoderTokens(name, 0.1 * values_NW.float(), (25, 25), grids, layout.num_deepstack, 0)
            sampling = Sampling(4, 0.7, 0.95, SHORT if index else LONG, seed=index)
            made.append(RolloutTask(ImagePair(name, 0, 1, 0, 0), put_tokens(tokens), sampling))
        return made

    return make


def drain(pool: Pool) -> list[Any]:
    found: list[Any] = []
    while arrived := pool.collect():
        found += arrived
    return found


@pytest.mark.timeout(900)
def test_groups_are_the_same_fed_or_lease_by_lease_and_cancelled_ones_do_not_come(
    tasks: Callable[[], list[RolloutTask]], tiny_checkpoint: Path
) -> None:
    with pool_of(tiny_checkpoint, is_fed=False) as pool:
        pool.submit(tasks())
        expected = {group.pair_id: group for group in drain(pool)}
        whole = pool.metrics()
    with pool_of(tiny_checkpoint, is_fed=True) as pool:
        pool.submit(tasks())
        found = drain(pool)
        fed = pool.metrics()
        pool.submit(tasks())
        arrived = pool.collect()
        pool.cancel(["p0"])
        others = [*arrived, *drain(pool)]
        again = pool.metrics()
    assert found[-1].pair_id == "p0", "the others passed the long one by"
    assert set(expected) == {group.pair_id for group in found} == {f"p{index}" for index in range(NUM_TASKS)}
    for group in found + others:
        mine, theirs = group.completions, expected[group.pair_id].completions
        assert mine.token_ids == theirs.token_ids
        assert group.advantages_G.tolist() == expected[group.pair_id].advantages_G.tolist()
        for mine_T, theirs_T in zip(mine.log_probs, theirs.log_probs, strict=True):
            np.testing.assert_allclose(mine_T, theirs_T, atol=1e-5, rtol=0)
    assert sorted(group.pair_id for group in others) == [f"p{index}" for index in range(1, NUM_TASKS)]
    assert (whole["leases"], fed["leases"], again["cancelled"], again["replacements"]) == (3, 1, 1, 0)
    assert fed["in_flight_share"] > 0
