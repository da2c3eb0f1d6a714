"""The part of a vision tower that trains: all of it, its last blocks, or low-rank updates of its linear layers."""

from __future__ import annotations

import torch
from torch import nn

from saga_dist.config.method import ModelSection
from saga_dist.errors import ModelError
from saga_dist.models.families.base import VisionTower
from saga_dist.models.lora import add_lora


def choose_trained(tower: VisionTower, settings: ModelSection, *, seed: int) -> None:
    """Makes the parameters constant that ``model.train`` leaves out; those of ``lora`` are added.

    Args:
        tower: tower all of whose parameters are trainable.
        settings: section ``[model]``.
        seed: seed of the initial low-rank updates.

    Raises:
        ModelError: a parameter is constant already, or the tower has fewer blocks than shall train.
        ConfigError: peft is not installed.
    """
    frozen = [name for name, parameter in tower.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ModelError(f"tensor {frozen[0]} of the tower is frozen", expected="all of it trainable from load_tower")
    if settings.train == "lora":
        add_lora(tower, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
    elif settings.last_blocks is not None:
        parts = tower.last_blocks(settings.last_blocks)
        tower.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)


def trained_parameters(tower: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of a tower that train, in the order of their names in the module."""
    return [parameter for parameter in tower.parameters() if parameter.requires_grad]


def trained_weights(tower: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what training changes in a tower by name: its state dict without its constant parameters."""
    constant = {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in tower.state_dict().items() if name not in constant}
