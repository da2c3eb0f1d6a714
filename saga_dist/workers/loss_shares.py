"""Share of each loss in the gradient of a step, at the two places where gradients of several losses are added.

    tower   the output tokens of the tower: metric loss and GRPO, or the verdict loss (``objective.signal``)
    pooler  the pooler's parameters: metric loss and attention alignment

One backward pass takes the sum at the tokens through the tower. The gradients include the weights lambda. Clipping
multiplies all of them by one factor, so the shares are those before and after it. The proxies have gradients of the
metric loss only. Norms at the tower's parameters need a backward pass for each loss; ``diagnostics/gradients.py``
measures them on a recorded step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch

LOSSES_AT = {"tower": ("dml", "grpo", "verdict"), "pooler": ("dml", "kl")}
"""Losses whose gradients are added at each place; a run has GRPO or the verdict loss."""


def share_name(place: str, loss: str) -> str:
    """Returns the name of the metric, ``share/PLACE_LOSS``."""
    return f"share/{place}_{loss}"


class GradientNorms:
    """Gradient norms of the losses in one step, by place and loss."""

    def __init__(self) -> None:
        self._squares: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, place: str, loss: str, gradients: Iterable[torch.Tensor], *, weight: float = 1.0) -> None:
        """Adds gradients of further tokens or parameters to the norm of a loss.

        Args:
            place: key of ``LOSSES_AT``.
            loss: one of the losses there.
            gradients: tensors of any shape and dtype.
            weight: factor of all of them.
        """
        for gradient in gradients:
            self._squares[place, loss] += weight**2 * gradient.float().square().sum().item()

    def norm(self, place: str, loss: str) -> float:
        """Returns the l2 norm of a loss's gradient at a place; 0 when nothing was added."""
        return math.sqrt(self._squares[place, loss])

    def shares(self) -> dict[str, float]:
        """Returns the metrics ``share/PLACE_LOSS``, norm / sum of the norms at that place, in (0, 1].

        A loss without a gradient at a place has no metric there.
        """
        shares: dict[str, float] = {}
        for place, losses in LOSSES_AT.items():
            norms = {loss: self.norm(place, loss) for loss in losses}
            if total := sum(norms.values()):
                shares |= {share_name(place, loss): norm / total for loss, norm in norms.items() if norm}
        return shares

    def balance(self, place: str, loss: str, *, to: float) -> float:
        """Scales the norm of a loss to ``to`` times the metric loss's; returns the factor for its gradient.

        Nothing changes, and the factor is 1, when one of the two gradients is zero.

        Args:
            place: key of ``LOSSES_AT``.
            loss: the loss to scale, with all its gradients added.
            to: ratio of the norms, positive.
        """
        reference, own = self.norm(place, "dml"), self.norm(place, loss)
        if not (reference and own):
            return 1.0
        factor = to * reference / own
        self._squares[place, loss] *= factor**2
        return factor
