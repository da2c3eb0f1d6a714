"""A learner of which a part of the tower trains: gradients, optimizer, checkpoints, resume, exported encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from workers.learner_steps import (
    assert_step_is_end_to_end,
    gradients_for,
    make_config,
    make_learner,
    micro_batch,
)

from saga_dist.config import RunConfig
from saga_dist.models.encoder import load
from saga_dist.models.trained_part import trained_parameters
from saga_dist.workers.learner import Learner

PARTS = ("last:1", "lora")


def config_of(checkpoint: Path, train: str) -> RunConfig:
    config = make_config(checkpoint)
    return config.model_copy(update={"model": config.model.model_copy(update={"train": train, "lora_rank": 2})})


def after(steps: int, learner: Learner) -> Learner:
    for _ in range(steps):
        learner.finish_step(gradients_for(learner, micro_batch(learner)))
    return learner


@pytest.mark.parametrize("train", PARTS)
def test_step_gradients_equal_end_to_end_autograd(tiny_checkpoint: Path, train: str) -> None:
    learner = after(1, make_learner(config_of(tiny_checkpoint, train)))  # low-rank updates are not zero any more
    assert_step_is_end_to_end(learner, 2)


@pytest.mark.parametrize("train", PARTS)
def test_only_the_part_that_trains_has_optimizer_state_and_changes(tiny_checkpoint: Path, train: str) -> None:
    learner = make_learner(config_of(tiny_checkpoint, train))
    before = {name: parameter.detach().clone() for name, parameter in learner.encoder.tower.named_parameters()}
    groups = {group["name"]: group["params"] for group in learner.optimizer.param_groups}
    assert list(map(id, groups["encoder"])) == list(map(id, trained_parameters(learner.encoder.tower)))
    after(2, learner)
    changed = {n for n, p in learner.encoder.tower.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in learner.encoder.tower.named_parameters() if p.requires_grad}
    assert len(changed) < len(before)


@pytest.mark.parametrize("train", PARTS)
def test_a_checkpoint_holds_what_trains_and_resumes_to_the_bit(
    tiny_checkpoint: Path, tmp_path: Path, train: str
) -> None:
    config = config_of(tiny_checkpoint, train)
    straight, first, second = (make_learner(config) for _ in range(3))
    after(4, straight)
    after(2, first).save(tmp_path)
    saved = {name for name in load_file(tmp_path / "learner.safetensors") if name.startswith("tower.")}
    assert saved == {f"tower.{n}" for n, p in first.encoder.tower.named_parameters() if p.requires_grad}
    second.load(tmp_path)
    after(2, second)
    state = second.encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in straight.encoder.state_dict().items())


@pytest.mark.parametrize("train", PARTS)
def test_the_digest_of_a_new_tower_is_that_of_the_checkpoint(tiny_checkpoint: Path, train: str) -> None:
    """So a recording made with the whole tower is of the weights that a run with a part of it starts from."""
    whole, part = (make_learner(config_of(tiny_checkpoint, which)) for which in ("all", train))
    assert part.tower_digest() == whole.tower_digest()
    assert after(2, part).tower_digest() != whole.tower_digest()


@pytest.mark.parametrize("train", PARTS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tokens_without_gradients_have_the_bits_of_those_of_training(
    tiny_checkpoint: Path, train: str, checkpointing: bool
) -> None:
    learner = make_learner(config_of(tiny_checkpoint, train), autocast_dtype=torch.bfloat16)
    if checkpointing:
        learner.encoder.tower.enable_gradient_checkpointing()
    after(2, learner)
    batch = micro_batch(learner)
    early = learner.encode_no_grad(batch).handles
    for one, trained in zip(early, learner.encode(batch).handles, strict=True):
        torch.testing.assert_close(one.values_NW, trained.values_NW, rtol=0, atol=0)


def test_the_exported_encoder_embeds_as_the_learner(tiny_checkpoint: Path, tmp_path: Path) -> None:
    learner = after(3, make_learner(config_of(tiny_checkpoint, "lora")))
    learner.save_encoder(tmp_path)
    images = learner._images._splits.named("val")
    found = load(tmp_path).encode([images.image(index) for index in range(len(images))])
    np.testing.assert_allclose(found, learner.embed("val").values_IE, atol=2e-6)
