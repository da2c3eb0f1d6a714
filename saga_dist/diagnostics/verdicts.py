"""Pairs of one class and pairs of two, apart: a judge that drifts to "same" looks fine in their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEP_METRICS: dict[str, str] = {
    "rollout/verdict_accuracy_same": "right verdicts, pairs of one class",
    "rollout/verdict_accuracy_different": "right verdicts, pairs of two classes",
    "rollout/contributing_same": "contributing groups a step, one class",
    "rollout/contributing_different": "contributing groups a step, two classes",
}
"""Metric of a training step to what it says."""


@dataclass(frozen=True, slots=True)
class EarlyLate:
    """A step metric where training began and where it ended."""

    metric: str
    early: float
    """Mean over the first fifth of the steps that have it (at least one step)."""
    late: float
    """The same over the last fifth."""
    num_steps: int
    """Steps that have it."""


def early_and_late(rows: Sequence[Mapping[str, float]]) -> list[EarlyLate]:
    """Returns the figures of ``STEP_METRICS`` that some step has.

    Args:
        rows: of ``metrics.jsonl``, by step.
    """
    found = []
    for metric in STEP_METRICS:
        values = [row[metric] for row in rows if metric in row]
        if values:
            fifth = max(1, len(values) // 5)
            early, late = (sum(part) / fifth for part in (values[:fifth], values[-fifth:]))
            found.append(EarlyLate(metric, early, late, len(values)))
    return found
