"""Weights of a tower in the autocast dtype, cast once for all forward passes of an optimizer step.

Autocast casts every matrix at every pass, and the graph of each pass keeps its own copies until the backward pass: with
several open micro-batches the tower would be in memory several times. Here the passes share one set of copies, which is
a part of the graph, so gradients reach the float32 weights as before. The values are those of autocast, which does not
cast what has its dtype already.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from saga_dist.models.families.base import PixelBatch, VisionTower

CAST_MODULES = (nn.Linear, nn.Conv2d, nn.Conv3d)
"""Modules whose weights autocast casts."""


class CastWeights:
    """Runs a tower under autocast with weights that are cast once.

    Args:
        tower: the tower, with float32 weights.
        dtype: autocast dtype; None runs the tower as it is.
    """

    def __init__(self, tower: VisionTower, dtype: torch.dtype | None) -> None:
        self._tower, self._dtype = tower, dtype
        self._copies: dict[str, torch.Tensor] = {}

    def forward(self, pixels: PixelBatch) -> torch.Tensor:
        """Returns the tower's tokens of all images, [sum of N, (1 + L) * D], in the autocast dtype."""
        if self._dtype is None:
            values_NW: torch.Tensor = self._tower(pixels)
            return values_NW
        with torch.autocast(next(self._tower.parameters()).device.type, dtype=self._dtype):
            # Without gradients nothing keeps the copies, and copies without a graph must not be used in training.
            copies = self._shared_copies(self._dtype) if torch.is_grad_enabled() else {}
            values_NW = functional_call(self._tower, copies, (pixels,)) if copies else self._tower(pixels)
        return values_NW.to(self._dtype)

    def forget(self) -> None:
        """Drops the copies; to be called whenever the weights have changed."""
        self._copies.clear()

    def _shared_copies(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Returns the copies, by the names of the parameters."""
        if not self._copies:
            for prefix, module in self._tower.named_modules():
                if isinstance(module, CAST_MODULES):
                    for name, weight in module.named_parameters(prefix, recurse=False):
                        self._copies[name] = weight.to(dtype)
        return self._copies
