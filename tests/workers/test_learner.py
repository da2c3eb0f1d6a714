"""The learner against end-to-end autograd, its schedule, its refusals and its state."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from workers.learner_steps import (
    assert_step_is_end_to_end,
    finish_and_catch,
    gradients_for,
    make_config,
    make_learner,
    micro_batch,
)

from saga_dist.errors import CheckpointError, TrainingError
from saga_dist.models.pooler import Pooler
from saga_dist.workers.optimization import build_optimizer, schedule_factor


@pytest.mark.parametrize("num_batches", [1, 2])
def test_step_gradients_equal_end_to_end_autograd(tiny_checkpoint: Path, num_batches: int) -> None:
    learner = make_learner(make_config(tiny_checkpoint, lambda_dml=0.7, lambda_lm=0.3, lambda_kl=2.0))
    assert_step_is_end_to_end(learner, num_batches)


def test_clipped_gradients_reach_the_optimizer(tiny_checkpoint: Path) -> None:
    free, clipped = (make_learner(make_config(tiny_checkpoint, clip_norm=limit)) for limit in (1e9, 0.05))
    before = finish_and_catch(free, gradients_for(free, micro_batch(free)))
    after = finish_and_catch(clipped, gradients_for(clipped, micro_batch(clipped)))
    proxies = [name for name, _ in clipped.metric_loss.named_parameters()]
    for names in (proxies, [name for name in after if name not in proxies]):
        norm, norm_after = (
            math.sqrt(sum(found[name].square().sum().item() for name in names)) for found in (before, after)
        )
        assert norm > 0.05
        assert norm_after == pytest.approx(0.05, rel=1e-4)
        for name in names:
            assert torch.allclose(after[name], before[name] * (0.05 / norm), rtol=1e-3, atol=1e-9)


WEIGHTS = {"lambda_dml": 0.7, "lambda_lm": 0.3, "lambda_kl": 2.0}


def measured_norms(checkpoint: Path) -> dict[str, float]:
    """Norm of each loss's gradient where it meets another's, from learners that have this loss alone."""
    norms = {}
    for key, name in (("lambda_dml", "dml"), ("lambda_kl", "kl")):
        learner = make_learner(make_config(checkpoint, **dict.fromkeys(WEIGHTS, 0.0) | {key: WEIGHTS[key]}))
        caught = finish_and_catch(learner, gradients_for(learner, micro_batch(learner)))
        pooler = [value for parameter, value in caught.items() if parameter.startswith("pooler.")]
        norms[f"pooler_{name}"] = math.sqrt(sum(value.square().sum().item() for value in pooler))
    learner = make_learner(make_config(checkpoint, **WEIGHTS))
    gradients = gradients_for(learner, micro_batch(learner))
    norms["tower_dml"] = math.sqrt(sum(opened.leaf_NW.grad.square().sum().item() for opened in learner._open))
    norms["tower_grpo"] = 0.3 * math.sqrt(sum(gradient.values_NW.square().sum().item() for gradient in gradients))
    return norms


def test_shares_of_the_losses_are_those_of_their_gradients(tiny_checkpoint: Path) -> None:
    norms = measured_norms(tiny_checkpoint)
    learner = make_learner(make_config(tiny_checkpoint, clip_norm=0.05, **WEIGHTS))
    metrics = learner.finish_step(gradients_for(learner, micro_batch(learner))).metrics
    for place in ("tower", "pooler"):
        total = sum(norm for name, norm in norms.items() if name.startswith(place))
        for name in (name for name in norms if name.startswith(place)):
            assert metrics[f"share/{name}"] == pytest.approx(norms[name] / total, rel=1e-4)
    assert metrics["gradient/clip_factor"] == pytest.approx(0.05 / metrics["gradient/total_norm"])


def test_metric_loss_alone_has_the_whole_gradient(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    learner.encode(micro_batch(learner))
    metrics = learner.finish_step([]).metrics
    assert {name: value for name, value in metrics.items() if name.startswith("share/")} == {
        "share/tower_dml": 1.0, "share/pooler_dml": 1.0,
    }  # fmt: skip


def test_balanced_gradients_have_norms_in_the_ratio_of_the_weights(tiny_checkpoint: Path) -> None:
    norms = measured_norms(tiny_checkpoint)
    learner = make_learner(make_config(tiny_checkpoint, balance="gradient_norm", **WEIGHTS))
    gradients = gradients_for(learner, micro_batch(learner))
    metrics = learner.finish_step(gradients).metrics
    assert metrics["share/tower_grpo"] == pytest.approx(0.3 / (0.7 + 0.3), rel=1e-4)
    assert metrics["share/pooler_kl"] == pytest.approx(2.0 / (0.7 + 2.0), rel=1e-4)
    # The same step with weights that give these ratios.
    scaled = {
        "lambda_dml": 0.7,
        "lambda_lm": 0.3 / 0.7 * norms["tower_dml"] / norms["tower_grpo"] * 0.3,
        "lambda_kl": 2.0 / 0.7 * norms["pooler_dml"] / norms["pooler_kl"] * 2.0,
    }
    by_hand = make_learner(make_config(tiny_checkpoint, **scaled))
    by_hand.finish_step(gradients_for(by_hand, micro_batch(by_hand)))
    for name, tensor in by_hand._state().items():
        assert torch.allclose(learner._state()[name], tensor, rtol=1e-4, atol=2e-5), name


def test_attention_alignment_reaches_the_pooler_only(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint, lambda_dml=0.0, lambda_lm=0.0, lambda_kl=1.0))
    caught = finish_and_catch(learner, gradients_for(learner, micro_batch(learner)))
    towers = [value.abs().max().item() for name, value in caught.items() if name.startswith("tower.")]
    assert max(towers) == 0.0
    assert caught["pooler.query"].abs().max() > 0


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tokens_without_gradients_have_the_bits_of_those_of_training(
    autocast: torch.dtype | None, checkpointing: bool, family_checkpoint: Path
) -> None:
    """Groups that start early are sampled from the former, and differentiated at the latter."""
    config = make_config(family_checkpoint)
    augmented = config.data.model_copy(update={"flip": True, "shift": 0.1, "crop": 0.5, "color_jitter": 0.2})
    learner = make_learner(config.model_copy(update={"data": augmented}), autocast_dtype=autocast)
    if checkpointing:
        learner.encoder.tower.enable_gradient_checkpointing()
    batch = micro_batch(learner, 1)
    early = learner.encode_no_grad(batch).handles
    learner.encode(micro_batch(learner, 0))
    behind = learner.encode_no_grad(batch).handles
    for one, two, trained in zip(early, behind, learner.encode(batch).handles, strict=True):
        assert one.encoder_version == trained.encoder_version
        assert one.grids == trained.grids
        torch.testing.assert_close(one.values_NW, trained.values_NW, rtol=0, atol=0)
        torch.testing.assert_close(two.values_NW, trained.values_NW, rtol=0, atol=0)


def test_abandoned_step_leaves_nothing_behind(tiny_checkpoint: Path) -> None:
    learners = [make_learner(make_config(tiny_checkpoint)) for _ in range(2)]
    gradients_for(learners[0], micro_batch(learners[0]))  # encoded, never finished
    states = []
    for learner in learners:
        learner.finish_step(gradients_for(learner, micro_batch(learner)))
        states.append(learner._state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_four_steps_equal_two_and_two_after_reloading(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint)
    straight, first, second = (make_learner(config) for _ in range(3))
    for _ in range(4):
        straight.finish_step(gradients_for(straight, micro_batch(straight)))
    for _ in range(2):
        first.finish_step(gradients_for(first, micro_batch(first)))
    first.save(tmp_path)
    second.load(tmp_path)
    assert second.step == 2
    for _ in range(2):
        second.finish_step(gradients_for(second, micro_batch(second)))
    assert all(torch.equal(tensor, second._state()[name]) for name, tensor in straight._state().items())


def test_load_refuses_another_shape(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint)
    make_learner(config).save(tmp_path)
    other = make_learner(config)
    other.encoder.pooler = Pooler("attention", width=128, embedding_dim=8, seed=1)
    with pytest.raises(CheckpointError, match=r"tensor pooler\.projection\.(weight|bias) does not fit"):
        other.load(tmp_path)


def test_gradients_of_another_step_are_refused(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    gradients = gradients_for(learner, micro_batch(learner))
    with pytest.raises(TrainingError, match="encoder version 7"):
        learner.finish_step([replace(gradients[0], encoder_version=7)])
    with pytest.raises(TrainingError, match="micro-batch of step 5"):
        learner.encode(replace(micro_batch(learner), step=5))


def test_non_finite_gradients_stop_the_run_before_the_weights_change(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    gradients = gradients_for(learner, micro_batch(learner))
    before = {name: tensor.clone() for name, tensor in learner._state().items()}
    gradients[1].values_NW[0, 0] = math.nan
    with pytest.raises(TrainingError, match=gradients[1].pair_id):
        learner.finish_step(gradients)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner._state().items())


def test_embeddings_are_unit_vectors_and_the_pretrained_ones_are_mean_tokens(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    trained, pretrained = learner.embed("val"), learner.embed("val", pretrained=True)
    assert trained.values_IE.shape == (16, 16)
    np.testing.assert_allclose(np.linalg.norm(trained.values_IE, axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        tower = learner.encoder.tower
        values_NW = tower(tower.preprocess([learner._images._splits.named("val").image(3)]))
    mean = tower.layout.main(values_NW).mean(0)
    np.testing.assert_allclose(pretrained.values_IE[3], (mean / mean.norm()).numpy(), atol=1e-5)


def test_schedule_by_hand(tiny_checkpoint: Path) -> None:
    settings = make_config(tiny_checkpoint).optimizer.model_copy(update={"warmup_fraction": 0.2})
    # 10 steps, 2 of warm-up: 1/2, 1, then half a cosine over the 8 that remain.
    factors = [schedule_factor(settings, step, 10) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    constant = settings.model_copy(update={"schedule": "constant"})
    assert [schedule_factor(constant, step, 10) for step in (0, 1, 9)] == [0.5, 1.0, 1.0]


def test_optimizer_groups(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    groups = {group["name"]: group for group in learner.optimizer.param_groups}
    assert groups["encoder"]["lr"] == 1e-3
    assert groups["pooler"]["lr"] == 1e-2
    assert groups["proxies"]["lr"] == pytest.approx(0.1)
    assert groups["proxies"]["weight_decay"] == 0
    assert groups["proxies"]["params"][0] is next(learner.metric_loss.parameters())


def test_a_step_moves_each_group_by_its_rate_and_decays_all_but_the_proxies(tiny_checkpoint: Path) -> None:
    """AdamW's first step moves a weight w by lr (sign of its gradient + decay w); step 0 is half of the warm-up."""
    optimizer = {"weight_decay": 0.1, "warmup_fraction": 0.2}
    config = make_config(tiny_checkpoint)
    learner = make_learner(
        config.model_copy(update={"optimizer": config.optimizer.model_copy(update=optimizer)}), num_steps=10
    )
    before = {name: tensor.clone() for name, tensor in learner._state().items()}
    gradients = finish_and_catch(learner, gradients_for(learner, micro_batch(learner)))
    names = {"pooler.query": "pooler.query", "loss.proxies": "metric_loss.loss.proxies"}
    names |= {name: name for name in gradients if name.startswith("tower.") and name.endswith("norm1.weight")}
    assert len(names) > 2
    for name, in_state in names.items():
        rate, decay = {"tower": (1e-3, 0.1), "pooler": (1e-2, 0.1), "loss": (0.1, 0.0)}[name.split(".")[0]]
        moved = before[in_state] - learner._state()[in_state]
        clear = gradients[name].abs() > 1e-5  # AdamW's epsilon is 1e-8
        assert clear.any()
        expected = 0.5 * rate * (gradients[name].sign() + decay * before[in_state])
        assert torch.allclose(moved[clear], expected[clear], rtol=5e-3, atol=1e-7), name


def test_constants_of_a_metric_loss_are_no_proxies(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    encoder, proxies = learner.encoder, list(learner.metric_loss.parameters())
    learner.metric_loss.origin_E = torch.nn.Parameter(torch.zeros(16), requires_grad=False)
    optimizer = build_optimizer(
        learner._settings,
        encoder=encoder,
        tower=encoder.tower,
        pooler=encoder.pooler,
        metric_loss=learner.metric_loss,
    )
    assert [id(tensor) for tensor in optimizer.param_groups[-1]["params"]] == [id(tensor) for tensor in proxies]


def test_optimizer_refuses_frozen_or_shared_tensors(tiny_checkpoint: Path) -> None:
    learner = make_learner(make_config(tiny_checkpoint))
    encoder = learner.encoder
    parts = {
        "encoder": encoder,
        "tower": encoder.tower,
        "pooler": encoder.pooler,
        "metric_loss": learner.metric_loss,
    }
    settings = learner._settings
    with pytest.raises(TrainingError, match="in two groups"):
        build_optimizer(settings, **{**parts, "metric_loss": encoder.pooler})
    with_proxies = torch.nn.ModuleList([encoder.tower, learner.metric_loss])  # they would learn at the encoder's rate
    with pytest.raises(TrainingError, match="in two groups"):
        build_optimizer(settings, **{**parts, "tower": with_proxies})
    encoder.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(TrainingError, match="tensor temperature of the encoder is in no group"):
        build_optimizer(settings, **parts)
    del encoder.temperature
    next(learner.encoder.pooler.parameters()).requires_grad_(False)
    with pytest.raises(TrainingError, match="pooler is frozen"):
        build_optimizer(settings, **parts)
    next(learner.encoder.pooler.parameters()).requires_grad_(True)
    learner.encoder.tower.requires_grad_(False)
    with pytest.raises(TrainingError, match="no tensor of the encoder trains"):
        build_optimizer(settings, **parts)
