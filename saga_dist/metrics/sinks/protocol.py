"""The protocol of a metric sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from saga_dist.metrics.group_words import GroupSample
    from saga_dist.types import StepResult


class MetricSink(Protocol):
    """Receives the metrics of a run, step by step."""

    def open(self, *, after_step: int) -> None:
        """Starts the sink, or continues it after ``after_step``; rows of later steps are dropped or written again."""

    def write(self, result: StepResult) -> None:
        """Writes the metrics of one step."""

    def write_group(self, sample: GroupSample) -> None:
        """Writes completions and images of one group of a step, before the metrics of that step."""

    def close(self) -> None:
        """Closes the sink; does nothing when it was never opened."""
