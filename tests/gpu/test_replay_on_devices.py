"""Replay on every device: the crown test, packed against padded, chunks, attention, stale groups and verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from workers.family_world import (
    World,
    assert_gradients,
    end_to_end,
    group_of,
    record_of,
    relative_error,
    tower_gradients,
    world_of,
)

from saga_dist.models.families import decoder
from saga_dist.models.families.attention_backends import VarlenFlash
from saga_dist.types import ImagePair, ReplayTask, TokenGradients, VerdictTask
from saga_dist.workers.replay import ReplayWorker

KL_LAYER = 2


@pytest.fixture
def world(family_checkpoint: Path) -> World:
    return world_of(family_checkpoint, "images_first")


def worker_of(world: World, device: torch.device, dtype: torch.dtype, **chunks: int) -> ReplayWorker:
    backbone = world.family.load_backbone(dtype=dtype, device=device)
    return ReplayWorker(backbone, family=world.family, prompt_text=world.prompt_text, kl_layer=KL_LAYER, **chunks)


def replayed(
    world: World, device: torch.device, dtype: torch.dtype = torch.bfloat16, **chunks: int
) -> tuple[TokenGradients, ReplayWorker]:
    """Token gradients of the group at the tokens that the tower computes on the CPU, and the worker."""
    group = group_of(world.reference.config.text_config.vocab_size)
    tower = world.family.load_tower()
    pixels = tower.preprocess(world.images)
    with torch.no_grad():
        record = record_of(world.family, pixels, tower(pixels))
    worker = worker_of(world, device, dtype, **chunks)
    return worker.replay(ReplayTask(group, record, group.num_tokens, True), record), worker


def test_replay_and_tower_backward_are_end_to_end_autograd(
    world: World, device: torch.device, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["device"] == "cuda":
        world.reference.to(device)
    group = group_of(world.reference.config.text_config.vocab_size)
    expected_NW, expected_tower, expected_loss = end_to_end(world, group)
    tower = world.family.load_tower(device=device)
    pixels = tower.preprocess(world.images)
    values_NW = tower(pixels)
    assert values_NW.device == device
    record = record_of(world.family, pixels, values_NW)
    worker = worker_of(world, device, torch.float32, completions_per_chunk=3, logits_chunk=5)
    found = worker.replay(ReplayTask(group, record, group.num_tokens, True), record)
    assert found.values_NW.device == device
    values_NW.backward(found.values_NW)
    expected = {name: gradient.cpu() for name, gradient in expected_tower.items()}
    on_cpu = replace(found, values_NW=found.values_NW.cpu())
    assert_gradients(world, tower_gradients(tower), on_cpu, expected_NW.cpu(), expected)
    assert found.loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)


def test_bfloat16_runs_packed_and_is_padded_up_to_rounding(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, worker = replayed(world, device)
    assert worker._backbone.supports_packing
    assert isinstance(worker._backbone._backend, VarlenFlash) == (device.type == "cuda")  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "find_backend", lambda *_: None)
        padded, worker = replayed(world, device)
        assert not worker._backbone.supports_packing
    assert relative_error(packed.values_NW, padded.values_NW) <= 0.03
    assert packed.loss == pytest.approx(padded.loss, rel=0.01, abs=0.01)
    assert packed.num_attended == padded.num_attended > 0
    torch.testing.assert_close(packed.attention_a_N, padded.attention_a_N, rtol=0.05, atol=1e-3)


def test_bfloat16_points_where_float32_does(world: World, device: torch.device) -> None:
    exact, _ = replayed(world, torch.device("cpu"), torch.float32)
    found, _ = replayed(world, device)
    width = world.family.layout.width
    for part, expected in zip(found.values_NW.split(width, 1), exact.values_NW.split(width, 1), strict=True):
        assert torch.cosine_similarity(part.flatten(), expected.flatten(), dim=0) >= 0.998


@pytest.mark.parametrize("chunks", [{"tokens_per_chunk": 9}, {"completions_per_chunk": 1, "logits_chunk": 3}], ids=str)
def test_chunks_change_nothing_but_rounding(world: World, device: torch.device, chunks: dict[str, int]) -> None:
    whole, _ = replayed(world, device, torch.float32)
    divided, worker = replayed(world, device, torch.float32, **chunks)
    prompt, _ = worker._prompt.load(zero_tokens(world))
    group = group_of(world.reference.config.text_config.vocab_size)
    assert len(worker._chunks(group, prompt)) > 2
    assert relative_error(divided.values_NW, whole.values_NW) <= 1e-5


def zero_tokens(world: World) -> Any:
    """Tokens of zeros with the sizes of the world's images."""
    pixels = world.family.load_tower().preprocess(world.images)
    return record_of(world.family, pixels, torch.zeros(sum(pixels.lengths), world.family.layout.wire_width))


def test_the_backbone_is_the_same_afterwards(world: World, device: torch.device) -> None:
    worker = worker_of(world, device, torch.bfloat16)
    before = worker.backbone_digest()
    assert before == worker_of(world, torch.device("cpu"), torch.bfloat16).backbone_digest()
    record = zero_tokens(world)
    group = group_of(world.reference.config.text_config.vocab_size)
    worker.replay(ReplayTask(group, record, group.num_tokens, True), record)
    assert worker.backbone_digest() == before


def test_stale_groups_are_weighed_on_the_device(world: World, device: torch.device) -> None:
    """With the same tokens today and then, all importance weights are 1; with others they are not."""
    group = group_of(world.reference.config.text_config.vocab_size)
    worker, today = worker_of(world, device, torch.float32), zero_tokens(world)
    older = replace(today, values_NW=today.values_NW + 0.5, encoder_version=2)

    def weights(behaviour: Any) -> tuple[float, ...]:
        task = ReplayTask(group, today, group.num_tokens, False, behaviour=behaviour, truncate_at=2.0)
        return worker.replay(task, today, behaviour).mismatch.weight_quantiles

    assert weights(today) == pytest.approx((1.0,) * 9, abs=1e-4)
    assert max(weights(older)) > 1.001


def test_verdicts_of_single_tokens_have_gradients_on_the_device(world: World, device: torch.device) -> None:
    """Both continuations have one token, the case that variable-length flash would take by another path."""
    record, task_of = zero_tokens(world), lambda record: VerdictTask(ImagePair("p", 0, 1, 0, 0), record, 3)
    found = worker_of(world, device, torch.bfloat16).replay(task_of(record), record)
    exact = worker_of(world, torch.device("cpu"), torch.float32).replay(task_of(record), record)
    assert found.loss == pytest.approx(exact.loss, rel=0.02)
    assert torch.cosine_similarity(found.values_NW.flatten(), exact.values_NW.flatten(), dim=0) >= 0.998
