"""Sizes of the part of the tower that trains (``model.train``), counted on the tower that training builds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from saga_dist.config.method import ModelSection
from saga_dist.estimate.parameters import ParameterCount
from saga_dist.models.families.base import VisionTower
from saga_dist.models.trained_part import choose_trained, trained_parameters


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """Sizes of the part of a tower that trains."""

    weights: ParameterCount
    """Parameters that train, those of low-rank updates included."""
    added: int
    """Parameters of low-rank updates, which the bare tower does not have."""
    blocks: int
    """Blocks that the backward pass runs through."""
    skipped_params: int
    """Weights of linear layers and convolutions that the backward pass does not reach."""

    @property
    def low_rank(self) -> bool:
        """True when low-rank updates train and the weights themselves are constant."""
        return self.added > 0


def trained_part(tower: VisionTower, settings: ModelSection, *, blocks: int) -> TrainedPart:
    """Returns the sizes of the part of a tower that trains, after applying ``model.train`` to it.

    Args:
        tower: bare tower on any device; it is changed.
        settings: section ``[model]``.
        blocks: number of blocks of the tower.
    """
    bare = ParameterCount.of(tower)
    choose_trained(tower, settings, seed=0)
    trained = trained_parameters(tower)
    count = settings.last_blocks
    return TrainedPart(
        weights=ParameterCount(sum(parameter.numel() for parameter in trained), len(trained)),
        added=ParameterCount.of(tower).params - bare.params,
        blocks=blocks if count is None else count,
        skipped_params=0 if count is None else _constant_matmul_params(tower),
    )


def _constant_matmul_params(tower: nn.Module) -> int:
    """Returns the number of constant weights of linear layers and convolutions."""
    layers = [layer for layer in tower.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)]
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)
