"""Verdict accuracy and contributing groups by kind of pair, early and late in training.

Pairs of one class and pairs of two classes are kept apart: the mean over both hides a drift towards the verdict "same".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEP_METRICS: dict[str, str] = {
    "rollout/verdict_accuracy_same": "right verdicts, pairs of one class",
    "rollout/verdict_accuracy_different": "right verdicts, pairs of two classes",
    "rollout/contributing_same": "contributing groups a step, one class",
    "rollout/contributing_different": "contributing groups a step, two classes",
}
"""Name of a training metric to its description in the table."""


@dataclass(frozen=True, slots=True)
class EarlyLate:
    """Means of one training metric at the beginning and at the end of training."""

    metric: str
    """Name of the metric, a key of ``STEP_METRICS``."""
    early: float
    """Mean over the first fifth of the steps that have the metric (at least one step)."""
    late: float
    """Mean over the last fifth of the steps that have the metric (at least one step)."""
    num_steps: int
    """Number of steps that have the metric."""


def early_and_late(rows: Sequence[Mapping[str, float]]) -> list[EarlyLate]:
    """Returns one record for each of ``STEP_METRICS`` that at least one step has.

    Args:
        rows: rows of ``metrics.jsonl`` in order of their steps.
    """
    found = []
    for metric in STEP_METRICS:
        values = [row[metric] for row in rows if metric in row]
        if values:
            fifth = max(1, len(values) // 5)
            early, late = (sum(part) / fifth for part in (values[:fifth], values[-fifth:]))
            found.append(EarlyLate(metric, early, late, len(values)))
    return found
