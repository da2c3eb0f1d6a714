"""Optimizer of the learner: parameter groups, learning-rate schedule, gradient clipping.

Encoder and pooler have separate learning rates. Proxies have the pooler's rate times a factor, and no weight decay. The
gradients of encoder and pooler are clipped by their joint global norm, those of the proxies separately (the paper says
only "clip 1.0"). Proxies get gradients from every class of a batch, so in a joint norm they would determine how much
the encoder's gradients are scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saga_dist.config import OptimizerSection
from saga_dist.errors import TrainingError
from saga_dist.models.trained_part import trained_parameters
from saga_dist.objectives.metric_losses import proxy_parameters


def build_optimizer(
    settings: OptimizerSection, *, encoder: nn.Module, tower: nn.Module, pooler: nn.Module, metric_loss: nn.Module
) -> torch.optim.AdamW:
    """Returns AdamW over three groups named ``encoder``, ``pooler`` and, where the metric loss has any, ``proxies``.

    Args:
        settings: learning rates and weight decay.
        encoder: the deployed model; all its trainable parameters must be in a group.
        tower: part of the encoder that has the encoder's learning rate; its constant parameters are in no group.
        pooler: part of the encoder that has the pooler's learning rate.
        metric_loss: metric loss, whose trainable parameters are the proxies; it may have none.

    Raises:
        TrainingError: a trainable parameter of the encoder is in no group, a parameter is in two groups, the whole
            tower is constant, or a parameter of the pooler is.
    """
    groups: list[dict[str, Any]] = [
        {"name": "encoder", "params": trained_parameters(tower), "lr": settings.lr_encoder},
        {"name": "pooler", "params": list(pooler.parameters()), "lr": settings.lr_pooler},
        {
            "name": "proxies",
            "params": proxy_parameters(metric_loss),
            "lr": settings.lr_pooler * settings.proxy_lr_multiplier,
            "weight_decay": 0.0,
        },
    ]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    if len(set(grouped)) != len(grouped):
        raise TrainingError(
            "a tensor is in two groups", where="optimizer", expected="encoder, pooler and proxies apart"
        )
    trained = ((name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad)
    ungrouped = [name for name, parameter in trained if id(parameter) not in grouped]
    if ungrouped:
        raise TrainingError(
            f"tensor {ungrouped[0]} of the encoder is in no group", where="optimizer", expected="tower and pooler alone"
        )
    frozen = [group["name"] for group in groups for parameter in group["params"] if not parameter.requires_grad]
    if frozen:
        raise TrainingError(f"a tensor of the {frozen[0]} is frozen", where="optimizer", expected="all of it trainable")
    if not groups[0]["params"]:
        raise TrainingError("no tensor of the encoder trains", where="optimizer", expected="at least one")
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)


def schedule_factor(settings: OptimizerSection, step: int, num_steps: int) -> float:
    """Returns the learning-rate factor of a step, in (0, 1]: linear warm-up, then cosine decay towards 0, or constant.

    It is a pure function of the step, so that a checkpoint holds no state of the schedule.

    Args:
        settings: schedule and warm-up fraction.
        step: optimizer step, from 0.
        num_steps: optimizer steps of the whole run.
    """
    warmup = round(settings.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


@dataclass(frozen=True, slots=True)
class ClippedGradients:
    """Gradient norms before clipping, and the factor that clipping applied."""

    encoder_norm: float
    """Global norm of encoder and pooler."""
    encoder_factor: float
    """Factor in (0, 1] by which the gradients of encoder and pooler were multiplied."""
    proxies_norm: float
    """Global norm of the proxies; 0 without proxies."""


def clip_gradients(optimizer: torch.optim.Optimizer, clip_norm: float) -> ClippedGradients:
    """Clips the gradients of encoder and pooler together, and those of the proxies separately.

    Args:
        optimizer: optimizer with the groups of ``build_optimizer``.
        clip_norm: largest global norm of each of the two sets, positive.

    Raises:
        TrainingError: a gradient is not finite.
    """
    main: list[nn.Parameter] = []
    proxies: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        (proxies if group["name"] == "proxies" else main).extend(group["params"])
    norms = [_clip(parameters, clip_norm) for parameters in (main, proxies)]
    if not all(map(math.isfinite, norms)):
        raise TrainingError(
            "the gradient is not finite", where="learner", fix="lower the learning rates, check the images"
        )
    return ClippedGradients(norms[0], min(1.0, clip_norm / norms[0]) if norms[0] else 1.0, norms[1])


def _clip(parameters: Sequence[nn.Parameter], clip_norm: float) -> float:
    """Clips gradients in place by their global norm; returns the norm before clipping, 0 without parameters."""
    return torch.nn.utils.clip_grad_norm_(parameters, clip_norm).item() if parameters else 0.0
