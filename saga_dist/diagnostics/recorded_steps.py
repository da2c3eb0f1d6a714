"""Recorded training steps, in a form that a learner and a replay worker can process again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.protocols import EncodedBatch
from saga_dist.training.recorded_source import RecordedRolloutSource
from saga_dist.training.rollout_buffer import RolloutBuffer
from saga_dist.types import MicroBatch, ScoredGroup
from saga_dist.wire import recordings


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Micro-batches and groups of one recorded step."""

    step: int
    """Optimizer steps done before this one."""
    batches: list[MicroBatch]
    """Micro-batches of the step, up to the last one that has recorded groups."""
    groups: list[ScoredGroup]
    """Groups whose rewards vary, at most ``rollout.contributing_groups`` of them."""
    truncations: list[float | None]
    """Largest importance weight of each group at the weights under measurement; None for a group that is on-policy."""


def recorded_steps(
    config: RunConfig, run_dir: Path, sampler: ClassBalancedSampler, *, near: int
) -> Iterator[RecordedStep]:
    """Yields the recorded steps, in order of their distance to ``near``.

    Args:
        config: configuration of the run.
        run_dir: directory of the run, with its recordings in ``rollouts/``.
        sampler: the run's sampler of micro-batches.
        near: optimizer step of the weights under measurement.

    Raises:
        DataError: the recording holds other images or classes than this data set.
    """
    steps = [number - 1 for number in recordings(run_dir / "rollouts")]
    if not steps:
        return
    rollouts = RecordedRolloutSource(config, run_dir)
    for step in sorted(steps, key=lambda step: (abs(step - near), step)):
        yield _read(config, rollouts, sampler, step, near)


def _read(
    config: RunConfig, rollouts: RecordedRolloutSource, sampler: ClassBalancedSampler, step: int, near: int
) -> RecordedStep:
    buffer, batches = RolloutBuffer(config.rollout.contributing_groups), []
    for index in range(config.rollout.max_micro_batches):
        batch = sampler.micro_batch(step, index, config.rollout.pairs_per_batch)
        outcomes = rollouts.get_groups(batch, EncodedBatch((), 0))
        groups = [outcome for outcome in outcomes if isinstance(outcome, ScoredGroup)]
        if not groups:
            break
        batches.append(batch)
        for group in groups:
            buffer.add(group)
    selected = buffer.selected()
    truncations = [rollouts.off_policy(group, near)[1] for group in selected]
    return RecordedStep(step, batches, selected, truncations)
