"""The crown test: replay plus one backward through the tower is end-to-end autograd through the whole MLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from workers.replay_reference import Reference, assert_attention, assert_gradients, end_to_end
from workers.replay_world import (
    World,
    record_of,
    replayed_gradients,
    strong_checkpoint,
    worker_of,
    world_of,
)

from saga_dist.errors import ModelError, TokenError
from saga_dist.types import (
    ReplayTask,
    Sampling,
)
from saga_dist.workers.replay import ReplayWorker


def test_replay_and_tower_backward_are_end_to_end_autograd_with_two_deepstack_levels(
    deep_world: World, deep_reference: Reference, layout: str
) -> None:
    results, tower = replayed_gradients(deep_world)
    assert_gradients(results, tower, deep_reference, levels=2)
    assert_attention(results, deep_reference)


def test_replay_and_tower_backward_are_end_to_end_autograd_on_the_stand_in_shape(tiny_checkpoint: Path) -> None:
    world = world_of(tiny_checkpoint)
    results, tower = replayed_gradients(world)
    assert_gradients(results, tower, end_to_end(world), levels=1)


def test_text_first_prompts_and_images_of_different_sizes_are_exact_too(tmp_path: Path, layout: str) -> None:
    world = world_of(
        strong_checkpoint(tmp_path / "model", tower_depth=2, deepstack=(0, 1)), text_first=True, sizes=(48, 80)
    )
    results, tower = replayed_gradients(world, completions_per_chunk=2)
    reference = end_to_end(world)
    assert_gradients(results, tower, reference, levels=2)
    assert_attention(results, reference)


def test_log_probs_of_the_sampling_distribution_are_end_to_end_autograd_too(
    deep_world: World, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """With half of the mass, many tokens of random completions are outside, and are kept all the same."""
    plain = deep_world.groups()
    drawn = [replace(group.completions, sampling=Sampling(5, 0.8, 0.5, 16, 0)) for group in plain]
    groups = [replace(group, completions=one) for group, one in zip(plain, drawn, strict=True)]
    monkeypatch.setattr(World, "groups", lambda _: groups)
    results, tower = replayed_gradients(deep_world, policy="sampling", logits_chunk=4)
    reference = end_to_end(deep_world, at_sampling=True)
    assert_gradients(results, tower, reference, levels=2)
    found = results[0].mismatch.replayed
    for one_T, expected_T in zip(found, reference.log_probs[0], strict=True):
        assert np.allclose(one_T, expected_T.numpy(), atol=1e-5)


def test_replay_is_deterministic(deep_world: World) -> None:
    first, _ = replayed_gradients(deep_world, completions_per_chunk=2)
    second, _ = replayed_gradients(deep_world, completions_per_chunk=2)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.values_NW, other.values_NW)
        assert one.loss == other.loss


def test_bfloat16_points_the_same_way(deep_world: World, deep_reference: Reference) -> None:
    results, _ = replayed_gradients(deep_world, dtype=torch.bfloat16)
    for found, expected in zip(results, deep_reference.token_gradients, strict=True):
        for part, expected_part in zip(found.values_NW.chunk(3, 1), expected.chunk(3, 1), strict=True):
            assert torch.cosine_similarity(part.flatten(), expected_part.flatten(), dim=0) >= 0.999


def test_the_backbone_is_untouched(deep_world: World) -> None:
    worker = worker_of(deep_world)
    before = worker.backbone_digest()
    tower = deep_world.family.load_tower()
    group = deep_world.groups()[0]
    pixels = tower.preprocess(deep_world.pairs[0])
    record = record_of(group, pixels, tower(pixels), tower.layout.num_deepstack)
    worker.replay(ReplayTask(group, record, 100, True), record)
    assert worker.backbone_digest() == before
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in worker._backbone.parameters())


def test_wrong_tokens_and_a_wrong_layer_are_refused(deep_world: World) -> None:
    group = deep_world.groups()[0]
    tower = deep_world.family.load_tower()
    pixels = tower.preprocess(deep_world.pairs[0])
    record = record_of(group, pixels, tower(pixels), tower.layout.num_deepstack)
    narrow = replace(record, values_NW=record.values_NW[:, : 2 * tower.layout.width], num_deepstack=1)
    with pytest.raises(TokenError, match=r"token width 256 with 1 DeepStack levels; expected 384"):
        worker_of(deep_world).replay(ReplayTask(group, narrow, 100, False), narrow)
    with pytest.raises(ModelError, match=r"objective.kl_layer = 9; expected a layer below 4"):
        ReplayWorker(
            deep_world.family.load_backbone(),
            family=deep_world.family,
            prompt_text=deep_world.prompt_text,
            kl_layer=9,
        )
