"""What recorded steps trained on, as a learner and a replay worker can take it again."""

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


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """What a recorded step trained on."""

    step: int
    batches: list[MicroBatch]
    groups: list[ScoredGroup]
    """That carry a gradient, as many as a step takes."""
    truncations: list[float | None]
    """For each group, its largest importance weight at today's weights; None where it is on-policy."""


def recorded_steps(
    config: RunConfig, run_dir: Path, sampler: ClassBalancedSampler, *, near: int
) -> Iterator[RecordedStep]:
    """Yields the recorded steps, the nearest to optimizer step ``near`` first.

    Raises:
        DataError: the recording holds other images or classes than this data set.
    """
    files = (run_dir / "rollouts").glob("step_*.arrow")
    steps = [int(path.stem.removeprefix("step_")) for path in files]
    for step in sorted(steps, key=lambda step: (abs(step - near), step)):
        yield _read(config, run_dir, sampler, step, near)


def _read(config: RunConfig, run_dir: Path, sampler: ClassBalancedSampler, step: int, near: int) -> RecordedStep:
    rollouts, buffer, batches = (
        RecordedRolloutSource(config, run_dir),
        RolloutBuffer(config.rollout.contributing_groups),
        [],
    )
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
