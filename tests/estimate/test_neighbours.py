"""Memory of an engine beside its neighbours on one card, and of images that wait on the host, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.estimate.memory import RolloutMemory
from saga_dist.estimate.placement import engine_bytes, kv_cache_capacity, read_ahead_bytes
from saga_dist.estimate.rates import CARDS

CUB = Path(__file__).resolve().parents[2] / "configs" / "cub.toml"
H200 = CARDS["h200"]
MEMORY = RolloutMemory(weights=1_000_000_000, kv_token_bytes=1000, kv_cache_tokens=0)
WORK_BYTES = 3 << 30


def config_of(**rollout: object) -> RunConfig:
    """Ten completions at a time, of 2,000 tokens each: a cache of 20 MB per thousand bytes of a token."""
    config = load_config(CUB)
    section = {"groups_per_lease": 5, "group_size": 2, "max_model_len": 2000, "max_tokens": 100} | rollout
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=section)})


def test_an_engine_takes_what_it_needs_and_leaves_the_rest_of_its_share() -> None:
    small = config_of()
    wanted = 64 << 20  # the smallest cache; 10 x 2,000 x 1,000 bytes are less
    assert engine_bytes(small, MEMORY, H200) == 1_000_000_000 + WORK_BYTES + wanted
    larger = RolloutMemory(1_000_000_000, 10_000, 0)
    assert engine_bytes(small, larger, H200) == 1_000_000_000 + WORK_BYTES + 10 * 2000 * 10_000
    assert kv_cache_capacity(small, larger, H200) == 10 * 2000


def test_an_engine_takes_no_more_than_its_share() -> None:
    narrow = config_of(gpu_memory_utilization=0.1)
    huge = RolloutMemory(1_000_000_000, 10_000_000, 0)  # a cache of 200 GB
    assert engine_bytes(narrow, huge, H200) == round(0.1 * H200.memory)
    assert kv_cache_capacity(narrow, huge, H200) == (round(0.1 * H200.memory) - WORK_BYTES - 10**9) // 10_000_000


def test_weights_and_cache_are_divided_over_the_gpus_of_an_engine() -> None:
    two, memory = config_of(tensor_parallel_size=2), RolloutMemory(1_000_000_000, 10_000, 0)
    assert engine_bytes(two, memory, H200) == 1_000_000_000 + 2 * WORK_BYTES + 200_000_000


@pytest.mark.parametrize(("threads", "expected"), [(0, 0), (2, 8 * 64 * 224 * 224 * 3)])
def test_images_that_threads_have_read_wait_on_the_host(threads: int, expected: int) -> None:
    config = load_config(CUB, [f"data.decode_threads={threads}"])
    assert (config.data.batch_size, config.data.image_size) == (64, 224)
    assert read_ahead_bytes(config) == expected
