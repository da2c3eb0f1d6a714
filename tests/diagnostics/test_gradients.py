"""Norms and cosines by hand; each loss alone against autograd, and all together as the sum of the three."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.diagnostics.gradients import (
    ENCODER,
    attention_entropies,
    cosines,
    encode_recorded,
    norms,
    parameter_gradients,
)
from saga_dist.diagnostics.step_cosines import UnitGradients
from saga_dist.runtime.build import build_learner
from saga_dist.types import EncoderTokens, LogProbMismatch, MicroBatch, TokenGradients
from saga_dist.utils.rng import counter_generator


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


BY_LOSS = {
    "dml": {"tower": flat(3.0, 0.0), "pooler": flat(4.0)},
    "grpo": {"tower": flat(1.0, 1.0), "pooler": flat(0.0)},
    "kl": {"tower": flat(0.0, 0.0), "pooler": flat(-2.0)},
}


def test_norms_by_hand() -> None:
    assert norms(BY_LOSS["dml"]) == {"tower": 3.0, "pooler": 4.0, ENCODER: 5.0}
    assert norms(BY_LOSS["kl"]) == {"tower": 0.0, "pooler": 2.0, ENCODER: 2.0}


def test_cosines_by_hand() -> None:
    found = cosines(BY_LOSS)
    assert list(found) == [("dml", "grpo"), ("dml", "kl"), ("grpo", "kl")]
    assert found["dml", "grpo"] == {
        "tower": pytest.approx(3 / (3 * math.sqrt(2))), "pooler": None, ENCODER: pytest.approx(3 / (5 * math.sqrt(2)))
    }  # fmt: skip
    assert found["dml", "kl"] == {"tower": None, "pooler": pytest.approx(-1.0), ENCODER: pytest.approx(-0.8)}
    assert found["grpo", "kl"] == {"tower": None, "pooler": None, ENCODER: 0.0}


def make_config(checkpoint: Path, dml: float, lm: float, kl: float) -> RunConfig:
    return parse_config(
        {
            "data": {
                "layout": "birds",
                "image_size": 80,
                "batch_size": 8,
                "images_per_class": 2,
                "birds": {
                    "train_classes": 4,
                    "train_images_per_class": 3,
                    "val_images_per_class": 2,
                    "test_images_per_class": 2,
                    "probe_images": 0,
                },
            },
            "model": {"path": str(checkpoint), "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
            "objective": {
                "metric_loss": "multi_similarity",
                "kl_layer": 1,
                "lambda_dml": dml,
                "lambda_lm": lm,
                "lambda_kl": kl,
            },
            "rollout": {"pairs_per_batch": 4},
        },
        where="test",
    )


def batches(config: RunConfig) -> list[MicroBatch]:
    """Of step 7, though the learner is at step 0."""
    labels = np.repeat(np.arange(4), 3)
    sampler = ClassBalancedSampler(labels, config.data.batch_size, config.data.images_per_class, seed=0)
    return [sampler.micro_batch(7, index, 4) for index in range(2)]


def made_up(tokens: EncoderTokens, num_attended: int) -> TokenGradients:
    generator = counter_generator("made up", tokens.pair_id)
    targets = [torch.tensor(generator.dirichlet(np.ones(length)), dtype=torch.float32) for length in tokens.lengths]
    return TokenGradients(
        pair_id=tokens.pair_id,
        values_NW=torch.tensor(generator.normal(size=tuple(tokens.values_NW.shape)), dtype=torch.float32),
        attention_a_N=targets[0],
        attention_b_N=targets[1],
        negative_entropy=sum(float(torch.xlogy(target, target).sum()) for target in targets),
        num_attended=num_attended,
        loss=0.0,
        num_tokens=10,
        mismatch=LogProbMismatch(0.0, 0.0),
        encoder_version=tokens.encoder_version,
    )


def measured(checkpoint: Path, dml: float, lm: float, kl: float) -> dict[str, torch.Tensor]:
    config = make_config(checkpoint, dml, lm, kl)
    learner = build_learner(config)
    tokens = encode_recorded(learner, batches(config))
    return parameter_gradients(learner, [made_up(one, 1 + index) for index, one in enumerate(tokens.values())])


def test_each_loss_alone_and_all_together(tiny_checkpoint: Path) -> None:
    dml, grpo, kl = (measured(tiny_checkpoint, *weights) for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    together = measured(tiny_checkpoint, 0.5, 2.0, 3.0)
    for part in ("tower", "pooler"):
        expected = 0.5 * dml[part] + 2 * grpo[part] + 3 * kl[part]
        assert (together[part] - expected).norm() < 1e-5 * expected.norm()
    assert norms(grpo)["pooler"] == 0 and norms(kl)["tower"] == 0
    assert min(norms(dml)["tower"], norms(dml)["pooler"], norms(grpo)["tower"], norms(kl)["pooler"]) > 0


def test_grpo_alone_is_autograd_of_tokens_times_their_gradients(tiny_checkpoint: Path) -> None:
    config = make_config(tiny_checkpoint, 0.0, 1.0, 0.0)
    learner = build_learner(config)
    tokens = encode_recorded(learner, batches(config))
    gradients = {pair_id: made_up(one, 1) for pair_id, one in tokens.items()}
    found = parameter_gradients(learner, list(gradients.values()))
    learner.encoder.zero_grad()
    tower, total = learner.encoder.tower, torch.zeros(())
    for batch in batches(config):
        seen = learner._images.train_batch(batch)
        for pair in batch.pairs:
            both = torch.cat([seen.values_NW[seen.rows[image]] for image in (pair.image_a, pair.image_b)])
            total = total + (both * gradients[pair.pair_id].values_NW).sum()
    expected = torch.cat([value.flatten() for value in torch.autograd.grad(total, list(tower.parameters()))]).double()
    assert (found["tower"] - expected).norm() < 1e-5 * expected.norm()


def test_spread_of_teacher_and_pooler_against_a_loop(tiny_checkpoint: Path) -> None:
    config = make_config(tiny_checkpoint, 0.0, 0.0, 1.0)
    learner = build_learner(config)
    tokens = encode_recorded(learner, batches(config))
    gradients = [made_up(one, index % 3) for index, one in enumerate(tokens.values())]
    spread = attention_entropies(learner.encoder, gradients, tokens)
    rows = []
    for gradient in gradients:
        pair = tokens[gradient.pair_id]
        main_ND = pair.values_NW[:, : learner.encoder.tower.layout.width]
        for target_N, image_ND in (
            (gradient.attention_a_N, main_ND[: pair.lengths[0]]),
            (gradient.attention_b_N, main_ND[pair.lengths[0] :]),
        ):
            with torch.no_grad():
                beta_N = learner.encoder.pooler([image_ND]).log_weights_IN[0].exp().double()
            p = target_N.double()
            row = (-(p * p.log()).sum(), -(beta_N * beta_N.log()).sum(), (p * (p / beta_N).log()).sum())
            rows += [[float(value) for value in row]] * gradient.num_attended
    teacher, pooler, divergence = np.mean(rows, axis=0)
    assert spread is not None
    assert spread.num_completions == sum(gradient.num_attended for gradient in gradients)
    assert spread.teacher_entropy_nats == pytest.approx(teacher, rel=1e-4)
    assert spread.pooler_entropy_nats == pytest.approx(pooler, rel=1e-4)
    assert spread.divergence_nats == pytest.approx(divergence, rel=1e-3)
    assert spread.uniform_entropy_nats == pytest.approx(math.log(25))
    assert attention_entropies(learner.encoder, [replace(gradients[0], num_attended=0)], tokens) is None


def test_mean_cosine_of_steps_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    units, truths = (torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(5, 7)))) for _ in range(2))
    found = UnitGradients()
    for unit, truth in zip(units, truths, strict=True):
        found.add(unit, truth)
    pairs = [float(units[i] @ units[j]) for i in range(5) for j in range(5) if i != j]
    assert found.between_steps == pytest.approx(np.mean(pairs))
    assert found.along_text == pytest.approx(np.mean([float(u @ t) for u, t in zip(units, truths, strict=True)]))
    one = UnitGradients()
    one.add(units[0], None)
    assert one.between_steps is None
