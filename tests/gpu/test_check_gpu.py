"""The sections of check-gpu in their tiny form, on every device, and the meaning of their numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpu.pretend_cuda import CUDA

from saga_dist.diagnostics.gpu_check import (
    engine,
    environment,
    gradients,
    learner,
    memory,
    precision,
    random_learner,
    replay,
    start,
)
from saga_dist.diagnostics.gpu_check.random_model import (
    RandomModel,
    random_model,
)
from saga_dist.diagnostics.gpu_check.sizes import SIZES
from saga_dist.diagnostics.gpu_check.skipping import SectionSkipped
from saga_dist.errors import EngineError, TrainingError
from saga_dist.estimate.operations import encoder_backward, encoder_forward, group_operations
from saga_dist.models.families.decoder import DecoderBackbone

TINY = SIZES["tiny"]
pytestmark = pytest.mark.usefixtures("auto_device", "cuda_counters")


# ---------------------------------------------------------------- sections


def test_the_environment_has_versions_kernels_and_a_process_group(real_device: torch.device) -> None:
    found = environment.measure("tiny")
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["attention_priority"]) >= {"FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH", "CUDNN_ATTENTION"}
    assert found["packed_attention"] == ("VarlenFlash" if real_device.type == "cuda" else "CpuFlash")
    assert min(found[name] for name in ("join_s", "gather_s", "all_reduce_s")) > 0
    assert not torch.distributed.is_initialized()


def test_a_group_that_changes_values_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    with pytest.raises(TrainingError, match="a collective call of one rank changed its values"):
        environment.measure("tiny")
    assert not torch.distributed.is_initialized()


def test_facts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=150_754_820_096, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = environment.device_facts(CUDA)
    assert (found["memory_bytes"], found["compute_capability"]) == (150_754_820_096, [9, 0])
    assert environment.gpu_memory("") == {"bytes": 150_754_820_096}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.gpu_memory("") == {"bytes": 0}


def test_gradients_are_those_of_end_to_end_autograd(real_device: torch.device) -> None:
    found = gradients.measure("tiny")
    assert 0 < found["token_gradient_error"] <= 1e-5
    assert 0 < found["tower_gradient_error"] <= 1e-5


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_gradients_that_differ_are_an_error(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gradients._replayed
    monkeypatch.setattr(gradients, "_replayed", lambda *arguments: factor * exact(*arguments))
    with pytest.raises(TrainingError, match=r"token_gradient_error = .*; expected at most 1e-05"):
        gradients.measure("tiny")


def test_replay_measures_each_program(device: torch.device) -> None:
    found = replay.measure("tiny")
    with random_model("tiny") as model:
        operations = group_operations(model.shape.decoder, model.token_counts, len(TINY.lengths))
        assert found["weights_bytes"] == 2 * model.shape.decoder.weights.params
    assert found["program"] == "packed"
    assert found["flops"] == operations.replay(stale=False)
    assert found["flops_per_s"] == found["flops"] / found["packed"]["second_s"]
    assert found["packed"]["tflops_per_s"] == pytest.approx(found["flops_per_s"] / 1e12)
    assert found["packed"]["first_s"] > 0
    assert found["padded"]["first_s"] > 0 and found["padded"]["second_s"] > 0
    if device.type == "cpu":
        assert "No viable backend for scaled_dot_product_attention" in found["padded_cudnn"]["not_run"]


def test_the_program_that_runs_use_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(replay.ReplayWorker, "replay", fail)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        replay.measure("tiny")


def test_padding_for_a_comparison_ends_with_it() -> None:
    with random_model("tiny") as model:
        backbone = model.backbone()
        assert backbone.supports_packing
        with replay.padded(backbone):
            assert not backbone.supports_packing
        assert backbone.supports_packing


def test_precision_compares_two_programs(device: torch.device) -> None:
    found = precision.measure("tiny")
    assert found["layers"] == TINY.precision_layers
    assert 0 < found["gradient_error"] <= 0.05
    assert 0 < found["log_prob_median"] <= found["log_prob_max"] <= 0.5
    assert 0 < found["log_prob_kl"] < found["log_prob_mean"]


def test_precision_is_skipped_where_nothing_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecoderBackbone, "supports_packing", False)
    with pytest.raises(SectionSkipped, match="no kernel of packed attention"):
        precision.measure("tiny")


def test_statistics_of_differences() -> None:
    found = precision.log_prob_statistics(np.array([0.0, -0.1, 0.3, 0.0], np.float32))
    assert found["log_prob_mean"] == pytest.approx(0.1)
    assert found["log_prob_median"] == pytest.approx(0.05)
    assert found["log_prob_max"] == pytest.approx(0.3)
    assert found["log_prob_kl"] == pytest.approx((math.exp(-0.1) + 0.1 + math.exp(0.3) - 0.3 - 2) / 4, rel=1e-5)


def test_memory_has_the_longest_group_and_a_row_of_ragged_ones(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    lengths: list[tuple[int, ...]] = []
    task = RandomModel.task

    def recorded(self: RandomModel, tokens: Any, given: tuple[int, ...], **rest: Any) -> Any:
        lengths.append(given)
        return task(self, tokens, given, **rest)

    monkeypatch.setattr(RandomModel, "task", recorded)
    found = memory.measure("tiny")
    assert lengths[0] == (TINY.longest,) * len(TINY.lengths)
    assert len(set(lengths[1:])) == TINY.ragged_groups == found["groups"] - 1
    assert all(6 <= length <= TINY.longest for group in lengths for length in group)
    assert found["allocator"] == "expandable_segments:True"
    assert found["row_reserved_bytes"] >= found["row_peak_bytes"] > 0
    assert found["longest_peak_bytes"] >= found["longest_working_bytes"] > 0
    assert found["longest_s"] > 0 and found["row_s"] > 0


def test_the_learner_has_rates_of_its_parts(busy_device: torch.device) -> None:
    found = learner.measure("tiny")
    with random_model("tiny") as model:
        shape, images = model.shape.tower, TINY.batch_size
    assert found["encoder_flops_per_s"] * found["tower_forward_s"] == pytest.approx(images * encoder_forward(shape))
    backward = found["backward_flops_per_s"] * found["open_1"]["backward_s"]
    assert backward == pytest.approx(images * encoder_backward(shape, checkpointing=True))
    update = found["update_bytes_per_s"] * found["open_1"]["update_s"]
    assert update == pytest.approx(36 * found["trainable_parameters"])
    assert found["trainable_parameters"] > shape.weights.params
    for count in (1, 2, 3):
        assert min(found[f"open_{count}"].values()) > 0


def test_a_step_in_parts_is_a_step() -> None:
    """Backward pass and optimizer apart give the weights of ``finish_step`` with all gradients."""
    with random_model("tiny") as model:
        parted, whole = (random_learner.random_learner(model, model.tower()) for _ in range(2))
        before = {name: weight.clone() for name, weight in whole._state().items()}
        step = random_learner.take_step(model, parted, 2)
        records = [
            record
            for index in range(2)
            for record in whole.encode(random_learner.micro_batch(model, whole, index)).handles
        ]
        assert len(records) == 2 * TINY.pairs
        whole.finish_step(random_learner.random_gradients(records))
        own, other = parted._state(), whole._state()
        assert all(torch.equal(own[name], weight) for name, weight in other.items())
        moved = {name.partition(".")[0] for name, weight in other.items() if not torch.equal(weight, before[name])}
        assert moved == {"tower", "pooler", "metric_loss"}
        assert (len(step.encoded), step.update.result.step, parted.step) == (2, 1, 1)
        assert step.peak_bytes >= max(part.peak_bytes for part in step.encoded)


def test_the_start_has_bytes_and_seconds(busy_device: torch.device) -> None:
    found = start.measure("tiny")
    with random_model("tiny") as model:
        values = 2 * model.shape.tower.tokens * model.shape.wire_width
        assert found["weights_bytes"] == 2 * model.shape.decoder.weights.params
        assert found["checkpoint_bytes"] > 3 * 4 * model.shape.tower.weights.params
    assert (found["pairs"], found["copies_bytes"]) == (TINY.pairs, 2 * TINY.pairs * values)
    for name in ("pooler_s", "copies_s", "checkpoint_s", "checksum_s", "digest_s"):
        assert found[name] > 0, name


# ---------------------------------------------------------------- the engine


class FakeEngine:
    """An engine that returns as many tokens as it may."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.calls, self.closed = arguments, [], False
        FakeEngine.last = self

    def generate(self, tokens: list[Any], samplings: list[Any], *, deadline_s: float) -> list[Any]:
        self.calls.append((tokens, samplings))
        return [
            SimpleNamespace(token_ids=((1,) * sampling.max_tokens,) * sampling.num_completions)
            for sampling in samplings
        ]

    def close(self) -> None:
        self.closed = True


def test_the_engines_rate_is_tokens_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(engine, "VllmEngine", FakeEngine)
    found = engine.measure("tiny")
    fake = FakeEngine.last
    assert found["tokens"] == TINY.pairs * len(TINY.lengths) * TINY.longest
    assert found["tokens_per_s"] == found["tokens"] / found["lease_s"]
    assert found["prefill_tokens"] == TINY.pairs * TINY.prompt_tokens
    assert fake.arguments["load_format"] == "dummy" and fake.closed
    assert fake.arguments["max_num_seqs"] == TINY.pairs * len(TINY.lengths)
    with random_model("tiny") as model:
        weights = model.shape.tower.weights.params + model.shape.decoder.weights.params
    assert fake.arguments["family"].files.num_parameters() == weights
    ids = [record.pair_id for tokens, _ in fake.calls for record in tokens]
    assert len(set(ids)) == len(ids) == 3 * TINY.pairs, "a prompt that was seen before would be in the prefix cache"
    assert {record.values_NW.dtype for tokens, _ in fake.calls for record in tokens} == {torch.float32}


def test_without_an_engine_the_section_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(SectionSkipped, match="vLLM is not installed"):
        engine.measure("tiny")

    def fail(**_: Any) -> Any:
        raise EngineError("vLLM did not start: no such architecture")

    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(engine, "VllmEngine", fail)
    with pytest.raises(SectionSkipped, match="no engine with random weights: vLLM did not start: no such"):
        engine.measure("tiny")


@pytest.mark.vllm
def test_vllm_runs_with_random_weights(real_device: torch.device) -> None:
    found = engine.measure("tiny")
    assert 0 < found["tokens"] <= TINY.pairs * len(TINY.lengths) * TINY.longest
    assert found["tokens_per_s"] == found["tokens"] / found["lease_s"]
    assert min(found["start_s"], found["prefill_s"]) > 0
