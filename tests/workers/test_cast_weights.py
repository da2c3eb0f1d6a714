"""Weights that are cast once a step give autocast's own values and gradients, in one copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saga_dist.estimate.activations import saved_bytes
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import PixelBatch, VisionTower
from saga_dist.workers.cast_weights import CAST_MODULES, CastWeights


def tower_of(checkpoint: Path, *, checkpointing: bool = False) -> tuple[VisionTower, list[PixelBatch]]:
    tower = resolve_family(checkpoint).load_tower()
    if checkpointing:
        tower.enable_gradient_checkpointing()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(3)]
    return tower.train(), [tower.preprocess(images[:2]), tower.preprocess(images[2:])]


def cast_of(tower: VisionTower) -> list[torch.nn.Parameter]:
    """The weights that are cast."""
    modules = [module for module in tower.modules() if isinstance(module, CAST_MODULES)]
    return [weight for module in modules for weight in module.parameters(recurse=False)]


def by_autocast(tower: VisionTower, pixels: PixelBatch) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values_NW: torch.Tensor = tower(pixels)
    return values_NW.to(torch.bfloat16)


def gradients(tower: VisionTower, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    for output in outputs:  # one backward pass for each open micro-batch
        output.backward(torch.ones_like(output))
    found = [parameter.grad.clone() for parameter in tower.parameters() if parameter.grad is not None]
    tower.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_of_two_passes_are_autocasts_to_the_bit(
    family_checkpoint: Path, checkpointing: bool
) -> None:
    tower, batches = tower_of(family_checkpoint, checkpointing=checkpointing)
    expected = [by_autocast(tower, pixels) for pixels in batches]
    weights = CastWeights(tower, torch.bfloat16)
    found = [weights.forward(pixels) for pixels in batches]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)
    pairs = zip(gradients(tower, found), gradients(tower, expected), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_second_pass_keeps_no_second_copy(tiny_checkpoint: Path) -> None:
    tower, (pixels, _) = tower_of(tiny_checkpoint)
    matrices = sum(weight.numel() for weight in cast_of(tower))

    def added(run: object) -> int:
        one, two = (saved_bytes(lambda n=n: [run(pixels) for _ in range(n)], tower.parameters()) for n in (1, 2))  # type: ignore[operator, misc]
        return two - one

    shared = CastWeights(tower, torch.bfloat16)
    assert added(lambda pixels: by_autocast(tower, pixels)) - added(shared.forward) >= 0.9 * 2 * matrices


def test_changed_weights_are_cast_again(tiny_checkpoint: Path) -> None:
    tower, (pixels, _) = tower_of(tiny_checkpoint)
    weights = CastWeights(tower, torch.bfloat16)
    before = weights.forward(pixels)
    with torch.no_grad():
        for weight in cast_of(tower):
            weight.mul_(1.5)
    assert torch.equal(weights.forward(pixels), before), "the copies are shared until they are dropped"
    weights.forget()
    assert torch.equal(weights.forward(pixels), by_autocast(tower, pixels))


def test_a_pass_without_gradients_leaves_no_copies_for_training(tiny_checkpoint: Path) -> None:
    tower, (pixels, _) = tower_of(tiny_checkpoint)
    weights = CastWeights(tower, torch.bfloat16)
    with torch.no_grad():
        evaluated = weights.forward(pixels)
    assert torch.equal(evaluated, by_autocast(tower, pixels))
    assert len(gradients(tower, [weights.forward(pixels)])) == len(list(tower.parameters()))


def test_without_autocast_the_tower_runs_as_it_is(tiny_checkpoint: Path) -> None:
    tower, (pixels, _) = tower_of(tiny_checkpoint)
    assert torch.equal(CastWeights(tower, None).forward(pixels), tower(pixels))
