"""Announces the next micro-batches to the learner, which reads their images while the step runs."""

from __future__ import annotations

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.protocols import Learner
from saga_dist.types import MicroBatch


def announce_next(config: RunConfig, learner: Learner, sampler: ClassBalancedSampler, batch: MicroBatch) -> None:
    """Tells the learner which micro-batches probably follow the one that it has just encoded; does not wait.

    These are the next one of the same step, if it has rollouts, and the first one of the next step. With
    ``rollout.max_staleness`` = S also the first one of the step S later, which the next step encodes ahead.

    Args:
        config: configuration of the run.
        learner: the learner.
        sampler: the stream of micro-batches; they are functions of counters, so the next ones are known.
        batch: the micro-batch that was encoded.
    """
    if not config.data.decode_threads:
        return
    following = [(batch.step + 1, 0)]
    if config.objective.needs_rollouts:
        following += [(batch.step, batch.index + 1), (batch.step + 1 + config.rollout.max_staleness, 0)]
    learner.expect(
        [
            sampler.micro_batch(step, index, 0)
            for step, index in sorted(set(following))
            if step < config.run.steps and index < config.rollout.max_micro_batches
        ]
    )
