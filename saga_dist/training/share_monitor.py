"""Warns about a loss that is configured but hardly contributes to the gradient."""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict, deque
from collections.abc import Mapping

from saga_dist.config import ObjectiveSection
from saga_dist.workers.loss_shares import LOSSES_AT, share_name

log = logging.getLogger(__name__)

WEIGHT_KEYS = {"dml": "lambda_dml", "grpo": "lambda_lm", "verdict": "lambda_lm", "kl": "lambda_kl"}
"""Key of each loss's weight in the section ``[objective]``."""
LOSS_NAMES = {
    "dml": "the metric loss",
    "grpo": "GRPO",
    "verdict": "the verdict loss",
    "kl": "the attention alignment",
}
"""Name of each loss in messages."""


def share_advice(objective: ObjectiveSection, place: str, loss: str, share: float) -> str:
    """Returns one line: the share of a loss, the loss that outweighs it, and the weight that would balance the two.

    Args:
        objective: section ``[objective]`` of the configuration.
        place: ``tower`` or ``pooler``.
        loss: the loss with the small share.
        share: its share of the gradient at that place, in (0, 1).
    """
    signal = {"tower": objective.signal, "pooler": "kl"}[place]
    larger = signal if loss == "dml" else "dml"
    key, weight = WEIGHT_KEYS[larger], getattr(objective, WEIGHT_KEYS[larger])
    found = f"{LOSS_NAMES[loss]} is {100 * share:.2g} % of the gradient at the {place}, {LOSS_NAMES[larger]} the rest"
    return f"{found}; objective.{key}={weight * share / (1 - share):.1g} (now {weight:g}) would make them equal"


def advice_for_step(objective: ObjectiveSection, metrics: Mapping[str, float]) -> list[str]:
    """Returns one line for each loss of a step with a small share, or with a positive weight and no gradient.

    Args:
        objective: section ``[objective]`` of the configuration.
        metrics: metrics of the step, with those of ``GradientNorms.shares``.
    """
    lines: list[str] = []
    for place, losses in LOSSES_AT.items():
        shares = {loss: metrics.get(share_name(place, loss)) for loss in losses}
        if all(share is None for share in shares.values()):
            continue  # a pooler without parameters
        for loss, share in shares.items():
            if share is None and _trains(objective, loss):
                lines.append(f"{LOSS_NAMES[loss]} had no gradient at the {place} in this step; its share is not known")
            elif share is not None and share < objective.min_share:
                lines.append(share_advice(objective, place, loss, share))
    return lines


def _trains(objective: ObjectiveSection, loss: str) -> bool:
    """Returns True when the run has the loss with a positive weight."""
    return loss not in {"grpo", "verdict"} - {objective.signal} and getattr(objective, WEIGHT_KEYS[loss]) > 0


class ShareMonitor:
    """Logs one warning for each loss whose share stays below ``objective.min_share``.

    Steps in which one of the two losses has no gradient (no group contributed, no completion was right) are not
    counted, because their shares do not depend on the weights.

    Args:
        objective: section ``[objective]`` of the configuration.
    """

    def __init__(self, objective: ObjectiveSection) -> None:
        self._objective = objective
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=objective.min_share_steps))
        self._warned: set[str] = set()

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step, with those of ``GradientNorms.shares``."""
        if not self._objective.min_share:
            return
        for place, losses in LOSSES_AT.items():
            for loss in losses:
                self._observe(place, loss, metrics.get(share_name(place, loss)))

    def _observe(self, place: str, loss: str, share: float | None) -> None:
        name = share_name(place, loss)
        if share is None or share == 1 or name in self._warned:
            return
        recent = self._recent[name]
        recent.append(share)
        if len(recent) == recent.maxlen and max(recent) < self._objective.min_share:
            self._warned.add(name)
            advice = share_advice(self._objective, place, loss, statistics.median(recent))
            log.warning("in the last %d steps with both losses, %s", len(recent), advice)
