"""The learner on every device: encoding, whole steps, checkpoints, embeddings and a process group of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.runtime.build import build_learner
from saga_dist.types import EncoderTokens, LogProbMismatch, MicroBatch, TokenGradients
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.data_parallel import Ranks, join, leave
from saga_dist.workers.learner import Learner


def config_of(checkpoint: Path, device: torch.device, dtype: str, **sections: dict[str, Any]) -> RunConfig:
    birds = {"train_classes": 4, "train_images_per_class": 4, "val_images_per_class": 2, "test_images_per_class": 2}
    tree: dict[str, dict[str, Any]] = {
        "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2, "birds": birds},
        "model": {"path": str(checkpoint), "dtype": dtype, "embedding_dim": 16, "device": device.type},
        "objective": {"metric_loss": "multi_similarity", "kl_layer": 1},
        "rollout": {"pairs_per_batch": 4},
    }
    return parse_config({**tree, **{name: tree.get(name, {}) | own for name, own in sections.items()}}, where="test")


def learner_on(checkpoint: Path, device: torch.device, dtype: str = "float32", **sections: dict[str, Any]) -> Learner:
    learner = build_learner(config_of(checkpoint, device, dtype, **sections))
    assert learner.encoder.device == device
    return learner


def batch_of(learner: Learner, index: int = 0) -> MicroBatch:
    return ClassBalancedSampler(learner.labels("train"), 8, 2, seed=3).micro_batch(learner.step, index, 4)


def gradients_of(records: tuple[Any, ...], version: int) -> list[TokenGradients]:
    """Made-up token gradients and attention targets of the pairs, on the CPU as replay workers send them."""
    found = []
    for record in records:
        generator = counter_generator("made-up", record.pair_id)
        targets = [torch.tensor(generator.dirichlet(np.ones(length)), dtype=torch.float32) for length in record.lengths]
        values = torch.tensor(generator.normal(size=tuple(record.values_NW.shape)), dtype=torch.float32)
        entropy = sum(float(torch.xlogy(target, target).sum()) for target in targets)
        found.append(
            TokenGradients(
                record.pair_id, 0.01 * values, *targets, entropy, 1, 0.25, 10, LogProbMismatch(0.0, 0.0), version
            )
        )
    return found


def stepped(learner: Learner, micro_batches: int = 2) -> dict[str, torch.Tensor]:
    """Weights after one optimizer step, on the CPU."""
    records = [record for index in range(micro_batches) for record in learner.encode(batch_of(learner, index)).handles]
    learner.finish_step(gradients_of(tuple(records), learner.step))
    return {name: weight.detach().cpu() for name, weight in learner._state().items()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_without_gradients_have_the_bits_of_those_of_training(
    dtype: str, family_checkpoint: Path, device: torch.device
) -> None:
    learner = learner_on(family_checkpoint, device, dtype)
    early = learner.encode_no_grad(batch_of(learner, 1)).handles
    for batch in (batch_of(learner), batch_of(learner, 1)):
        trained = learner.encode(batch).handles
    for one, other in zip(early, trained, strict=True):
        assert torch.equal(one.values_NW.cpu(), other.values_NW.cpu())


def test_images_are_encoded_as_on_the_cpu(family_checkpoint: Path, device: torch.device) -> None:
    exact, learner = learner_on(family_checkpoint, torch.device("cpu")), learner_on(family_checkpoint, device)
    expected, found = exact.encode(batch_of(exact)).handles, learner.encode(batch_of(learner)).handles
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, EncoderTokens) and isinstance(other, EncoderTokens)
        assert (one.pair_id, one.lengths, one.grids) == (other.pair_id, other.lengths, other.grids)
        assert one.values_NW.device == device
        assert error(one.values_NW.cpu(), other.values_NW) <= 1e-4


def test_a_step_moves_the_weights_as_on_the_cpu(tiny_checkpoint: Path, device: torch.device) -> None:
    start = {name: weight.clone() for name, weight in learner_on(tiny_checkpoint, torch.device("cpu"))._state().items()}
    expected, found = (
        stepped(learner_on(tiny_checkpoint, torch.device("cpu"))),
        stepped(learner_on(tiny_checkpoint, device)),
    )
    moved = {name: expected[name] - start[name] for name in start if expected[name].dtype.is_floating_point}
    for part in ("tower.", "pooler."):
        own, others = (
            torch.cat([(weights[name] - start[name]).flatten() for name in moved if name.startswith(part)])
            for weights in (found, expected)
        )
        assert others.norm() > 0
        # AdamW's first step is the sign of the gradient: where a gradient is rounding, signs may differ.
        assert torch.cosine_similarity(own, others, dim=0) >= 0.99


def test_autocast_encodes_in_bfloat16_and_trains_float32_weights(tiny_checkpoint: Path, device: torch.device) -> None:
    learner = learner_on(tiny_checkpoint, device, "bfloat16")
    exact = learner_on(tiny_checkpoint, torch.device("cpu"))
    expected = exact.encode(batch_of(exact)).handles[0].values_NW
    record = learner.encode(batch_of(learner)).handles[0]
    assert record.values_NW.dtype == torch.bfloat16
    assert 0 < error(record.values_NW.cpu(), expected) <= 0.05
    weights = stepped(learner)
    assert all(weight.dtype == torch.float32 for name, weight in weights.items() if "weight" in name)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_gradient_checkpointing_changes_nothing(tiny_checkpoint: Path, device: torch.device) -> None:
    plain = stepped(learner_on(tiny_checkpoint, device, "bfloat16"))
    saved = stepped(learner_on(tiny_checkpoint, device, "bfloat16", optimizer={"gradient_checkpointing": True}))
    own, others = (torch.cat([weight.float().flatten() for weight in each.values()]) for each in (saved, plain))
    assert error(own, others) <= 1e-4


def test_a_checkpoint_restores_the_step(tiny_checkpoint: Path, device: torch.device, tmp_path: Path) -> None:
    learner = learner_on(tiny_checkpoint, device)
    stepped(learner)
    learner.save(tmp_path)
    restored = learner_on(tiny_checkpoint, device)
    restored.load(tmp_path)
    assert restored.step == 1
    expected, found = stepped(learner), stepped(restored)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_embeddings_are_those_of_the_cpu(tiny_checkpoint: Path, device: torch.device) -> None:
    expected = learner_on(tiny_checkpoint, torch.device("cpu")).embed("val").values_IE
    found = learner_on(tiny_checkpoint, device).embed("val").values_IE
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def ranks(real_device: torch.device) -> Iterator[Ranks]:
    yield join(dist.HashStore(), rank=0, size=1, device=real_device, timeout_s=60)
    leave()


def test_one_rank_joins_gathers_and_adds_up(ranks: Ranks, real_device: torch.device) -> None:
    """With one rank in the group, every collective returns what it was given."""
    assert dist.get_backend() == ("nccl" if real_device.type == "cuda" else "gloo")
    rows = torch.arange(6.0, device=real_device).reshape(3, 2)
    assert torch.equal(ranks.all_rows(rows, [3]), rows)
    total = torch.ones(4, device=real_device)
    dist.all_reduce(total)
    dist.broadcast(total, src=0)
    assert total.tolist() == [1.0] * 4
    (gathered,) = ranks._gather_counts(3, real_device)
    assert gathered == 3
