"""Section ``learner``: encoding, backward pass and optimizer with one, two and three open micro-batches."""

from __future__ import annotations

from typing import Any

from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.diagnostics.gpu_check.random_learner import MeasuredStep, random_images, random_learner, take_step
from saga_dist.diagnostics.gpu_check.random_model import DTYPE, RandomModel, random_model
from saga_dist.estimate.operations import OPTIMIZER_BYTES, encoder_backward, encoder_forward
from saga_dist.models.families.checkpoint_family import ModelTower
from saga_dist.workers.cast_weights import CastWeights

OPEN_MICRO_BATCHES = (1, 2, 3)


def measure(size_name: str) -> dict[str, Any]:
    """Returns seconds and peak memory of a step for each number of open micro-batches, and the rates of its parts."""
    with random_model(size_name) as model:
        tower = model.tower()
        learner = random_learner(model, tower)
        take_step(model, learner, 1)  # loads kernels and makes the optimizer's state
        steps = {count: take_step(model, learner, count) for count in OPEN_MICRO_BATCHES}
        forward_s = _tower_forward_s(model, tower)
        trainable = sum(weight.numel() for group in learner.optimizer.param_groups for weight in group["params"])
        images, shape = model.size.batch_size, model.shape.tower
        return {
            "images": images,
            "trainable_parameters": trainable,
            "tower_forward_s": forward_s,
            "encoder_flops_per_s": images * encoder_forward(shape) / forward_s,
            "backward_flops_per_s": images * encoder_backward(shape, checkpointing=True) / steps[1].backward.seconds,
            "update_bytes_per_s": OPTIMIZER_BYTES * trainable / steps[1].update.seconds,
            **{f"open_{count}": _summary(step) for count, step in steps.items()},
        }


def _tower_forward_s(model: RandomModel, tower: ModelTower) -> float:
    """Returns the seconds of the tower's forward pass on one micro-batch, as in training; the second of two passes."""
    pixels, weights = tower.preprocess(random_images(model.size)), CastWeights(tower, DTYPE)
    return [measured(model.device, lambda: weights.forward(pixels)).seconds for _ in range(2)][1]


def _summary(step: MeasuredStep) -> dict[str, float]:
    return {
        "encode_s": sum(part.seconds for part in step.encoded),
        "backward_s": step.backward.seconds,
        "update_s": step.update.seconds,
        "peak_bytes": step.peak_bytes,
    }
