"""Arguments of vLLM on a GPU, by hand and with a mocked platform; no engine is started."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saga_dist.errors import ConfigError, EngineError
from saga_dist.models.families import resolve_family
from saga_dist.runtime.validation import sampling
from saga_dist.workers.engines import vllm_engine
from saga_dist.workers.engines.vllm_arguments import GPU_WORK_BYTES, EngineSize, gpu_arguments

GB = 10**9
SIZE = EngineSize(weights=17 * GB, token=147_456, context=4096, sequences=128)
"""Qwen3-VL-8B in bfloat16: 2 x 36 layers x 8 key heads x 128 x 2 bytes a token."""


def test_the_caches_size_by_hand() -> None:
    """150 GB x 0.3 - 17 GB - 3 GiB = 24.8 GB; 128 sequences of 4,096 tokens would be 77.3 GB."""
    room = 45 * GB - 17 * GB - GPU_WORK_BYTES
    assert SIZE.wanted == 128 * 4096 * 147_456
    assert SIZE.on_gpu(memory=150 * GB, share=0.3, shards=1) == room
    assert SIZE.on_gpu(memory=150 * GB, share=0.9, shards=1) == SIZE.wanted
    assert SIZE.on_gpu(memory=80 * GB, share=0.4, shards=2) == 32 * GB - 17 * GB // 2 - GPU_WORK_BYTES


def test_the_engine_asks_for_no_more_than_it_needs() -> None:
    limited, ample = gpu_arguments(SIZE, 150 * GB, 0.3, 1), gpu_arguments(SIZE, 150 * GB, 0.9, 1)
    assert limited["gpu_memory_utilization"] == pytest.approx(0.3)
    assert ample["gpu_memory_utilization"] == (17 * GB + GPU_WORK_BYTES + SIZE.wanted) / (150 * GB) < 0.9
    assert limited["max_num_batched_tokens"] == 8192


@pytest.mark.parametrize(("share", "leaves"), [(0.138, "0.5 GB"), (0.05, "0.0 GB")])
def test_a_share_without_room_for_one_sequence_is_refused(share: float, leaves: str) -> None:
    with pytest.raises(
        ConfigError, match=f"gpu_memory_utilization = {share} of a GPU of 150.0 GB leaves {leaves}"
    ) as caught:
        SIZE.on_gpu(memory=150 * GB, share=share, shards=1)
    assert "at least 0.6 GB, one sequence of rollout.max_model_len = 4096 tokens" in str(caught.value)


class MockedPlatform:
    """vLLM's platform on a machine with one GPU of 80 GB."""

    memory = 80 * GB

    def is_cpu(self) -> bool:
        return False

    def get_device_total_memory(self) -> int:
        return self.memory


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of the engines that vLLM would have started on a GPU."""
    import vllm
    import vllm.platforms

    given: list[dict[str, Any]] = []

    def start(arguments: dict[str, Any]) -> Any:
        given.append(arguments)
        stop = SimpleNamespace(shutdown=lambda: None)
        return SimpleNamespace(engine_core=stop, renderer=stop)

    monkeypatch.setattr(vllm.platforms, "current_platform", MockedPlatform())
    # Set, not replaced: vLLM would import its whole engine to find what is replaced.
    monkeypatch.setitem(vars(vllm), "EngineArgs", lambda **arguments: arguments)
    monkeypatch.setitem(vars(vllm), "LLMEngine", SimpleNamespace(from_engine_args=start))
    return given


def engine(checkpoint: Path, **settings: Any) -> vllm_engine.VllmEngine:
    family = resolve_family(checkpoint)
    return vllm_engine.VllmEngine(
        family=family, prompt_text=f"{family.image_placeholder} and {family.image_placeholder}?", max_model_len=256,
        max_num_seqs=16, **settings,
    )  # fmt: skip


@pytest.mark.vllm
def test_vllm_on_a_gpu_gets_a_computed_cache(tiny_checkpoint: Path, started: list[dict[str, Any]]) -> None:
    """The stand-in wants less than its share: 16 sequences of 256 tokens, at least 64 MiB."""
    engine(tiny_checkpoint, gpu_memory_utilization=0.25)
    (arguments,) = started
    assert arguments["kv_cache_memory_bytes"] == 64 << 20
    weights = 2 * resolve_family(tiny_checkpoint).files.num_parameters()
    needed = weights + GPU_WORK_BYTES + (64 << 20)
    assert arguments["gpu_memory_utilization"] == pytest.approx(needed / (80 * GB))
    assert arguments["max_num_batched_tokens"] == 8192
    assert {"enforce_eager", "block_size", "enable_chunked_prefill"}.isdisjoint(arguments)


@pytest.mark.vllm
def test_batch_invariance_is_asked_for_before_the_engine_starts(
    tiny_checkpoint: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")  # restored afterwards
    engine(tiny_checkpoint)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"
    engine(tiny_checkpoint, batch_invariant=True)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
    assert len(started) == 2


@pytest.mark.vllm
def test_a_gpu_without_room_is_the_users_mistake_and_not_the_engines(
    tiny_checkpoint: Path, started: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match="rollout.gpu_memory_utilization = 0.01"):
        engine(tiny_checkpoint, gpu_memory_utilization=0.01)
    assert started == []


@pytest.mark.vllm
def test_a_closed_engine_frees_the_gpus_memory(
    tiny_checkpoint: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    running = engine(tiny_checkpoint)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    running.close()
    assert freed == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    running.close()
    assert freed == [True]
    with pytest.raises(EngineError, match="cannot be used any more: it was closed"):
        running.generate([], [], deadline_s=1.0)


@pytest.mark.vllm
def test_seeds_beyond_32_bits_start_the_engine(tiny_checkpoint: Path, started: list[dict[str, Any]]) -> None:
    """The engine seeds numpy's global generator, which takes no more."""
    engine(tiny_checkpoint, seed=7)
    engine(tiny_checkpoint, seed=(5 << 32) + 7)
    assert [arguments["seed"] for arguments in started] == [7, 7]
    np.random.RandomState(started[1]["seed"])


@pytest.mark.vllm
def test_the_limits_that_are_checked_before_a_run_are_those_of_vllm() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    low, high, most = sampling.LOWEST_TEMPERATURE, sampling.HIGHEST_TEMPERATURE, sampling.MOST_COMPLETIONS
    for temperature in (low, high):
        assert SamplingParams(temperature=temperature, n=most).temperature == temperature
    assert SamplingParams(temperature=0.9 * low).temperature == low  # replaced without an error
    for beyond in ({"temperature": high + 0.01}, {"n": most + 1}, {"top_p": 0.0}, {"top_p": 1.01}, {"max_tokens": 0}):
        with pytest.raises(VLLMValidationError, match=f"{next(iter(beyond))} must be"):
            SamplingParams(**beyond)


@pytest.mark.vllm
def test_a_closed_engine_removes_the_shared_memory_that_its_shards_had(
    tiny_checkpoint: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[set[str]] = []
    monkeypatch.setattr(vllm_engine, "mapped_files", lambda pids: {"psm_of_a_shard"})
    monkeypatch.setattr(vllm_engine, "remove_unmapped", removed.append)
    engine(tiny_checkpoint).close()
    assert removed == [{"psm_of_a_shard"}]
