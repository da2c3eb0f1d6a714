"""How the learner steps: parameter groups, learning-rate schedule, clipping.

Encoder and pooler have rates of their own; proxies learn faster by a factor and do not decay. The global norm of
encoder and pooler is clipped together, that of the proxies apart (the paper says only "clip 1.0"): proxies meet every
class of a batch at once and would otherwise decide how far the encoder may move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from saga_dist.config import OptimizerSection
from saga_dist.errors import TrainingError
from saga_dist.objectives.metric_losses import proxy_parameters


def build_optimizer(
    settings: OptimizerSection, *, encoder: nn.Module, tower: nn.Module, pooler: nn.Module, metric_loss: nn.Module
) -> torch.optim.AdamW:
    """Returns AdamW over three groups named ``encoder``, ``pooler`` and, where the metric loss has any, ``proxies``.

    Args:
        settings: rates and decay.
        encoder: all that is deployed; nothing of it may stay untrained unnoticed.
        tower: its part with the encoder's rate.
        pooler: its part with the pooler's rate.
        metric_loss: its trainable tensors, if it has any, are the proxies.

    Raises:
        TrainingError: a trainable tensor is in no group or in two.
    """
    groups: list[dict[str, Any]] = [
        {"name": "encoder", "params": list(tower.parameters()), "lr": settings.lr_encoder},
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
    forgotten = [name for name, parameter in encoder.named_parameters() if id(parameter) not in grouped]
    if forgotten:
        raise TrainingError(
            f"tensor {forgotten[0]} of the encoder is in no group", where="optimizer", expected="tower and pooler alone"
        )
    frozen = [group["name"] for group in groups for parameter in group["params"] if not parameter.requires_grad]
    if frozen:
        raise TrainingError(f"a tensor of the {frozen[0]} is frozen", where="optimizer", expected="all of it trainable")
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)


def schedule_factor(settings: OptimizerSection, step: int, num_steps: int) -> float:
    """Returns the learning-rate factor of optimizer step ``step`` (from 0): linear warm-up, then cosine towards 0.

    A pure function of the step, so that there is no schedule to save.
    """
    warmup = round(settings.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def clip_gradients(optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    """Clips encoder and pooler together and proxies apart; returns the norm of the former before clipping.

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
    return norms[0]


def _clip(parameters: Sequence[nn.Parameter], clip_norm: float) -> float:
    return torch.nn.utils.clip_grad_norm_(parameters, clip_norm).item() if parameters else 0.0
