"""Seconds of one step: each role on its own, then one after the other, or rollouts beside the learner.

    sync        encode ──► rollout ──► replay ──► update                 their sum
    overlapped  encode, replay, update of step s │ rollouts of s + 1     the longer of the two

Rollout and replay workers share groups evenly; nobody works on less than one group. So a role stops gaining when it has
a worker for every group: rollouts at the pairs of a micro-batch, replay at the groups that train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from saga_dist.config import RunConfig
from saga_dist.estimate.memory import FLOAT32, LearnerMemory, RolloutMemory
from saga_dist.estimate.operations import OPTIMIZER_BYTES, GroupOperations, encoder_backward, encoder_forward
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Rates
from saga_dist.estimate.sampling import SamplingDemand
from saga_dist.estimate.shapes import ModelShape
from saga_dist.estimate.token_counts import TokenCounts

ROLES = ("encode", "rollout", "replay", "update")


@dataclass(frozen=True, slots=True)
class Workload:
    """All that a step's time depends on, but for how many do it."""

    config: RunConfig
    shape: ModelShape
    token_counts: TokenCounts
    demand: SamplingDemand
    group: GroupOperations
    learner: LearnerMemory
    rollout: RolloutMemory
    rates: Rates


@dataclass(frozen=True, slots=True)
class Split:
    """Who does what."""

    learners: int
    """Processes of the learner."""
    rollouts: int
    """Rollout workers."""
    replays: int
    """Replay workers; 0: in the learner's process."""
    rollout_gpus: int = 1
    """Of one rollout worker."""
    replay_gpus: int = 1
    """Of one replay worker."""
    shared: bool = False
    """True when all of it is on one device."""

    @property
    def gpus(self) -> int:
        """Devices in all."""
        if self.shared:
            return 1
        return self.learners + self.rollouts * self.rollout_gpus + self.replays * self.replay_gpus


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of an average step."""

    encode: float
    rollout: float
    replay: float
    update: float
    encode_no_grad: float
    """Further encoding where rollouts run ahead."""
    stale_replay: float
    """Replay where rollouts are stale."""
    overlaps: bool
    """True when rollouts have devices of their own."""

    @property
    def sync(self) -> float:
        """Of a step whose rollouts come from its own encoder."""
        return self.encode + self.rollout + self.replay + self.update

    @property
    def overlapped(self) -> float:
        """With ``rollout.max_staleness`` of 1 or more; on one device nothing is gained."""
        learner = self.encode_no_grad + self.encode + self.stale_replay + self.update
        return max(self.rollout, learner) if self.overlaps else self.rollout + learner

    @property
    def learner(self) -> float:
        """Seconds of encode and update, the phases that the learner's processes divide among themselves."""
        return self.encode + self.update

    @property
    def longest(self) -> str:
        """Name of the role that takes most of a sync step."""
        return max(ROLES, key=lambda role: float(getattr(self, role)))


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The same step at the expected rates, and at either end of the ranges of the assumed ones."""

    expected: StepTime
    fastest: StepTime
    slowest: StepTime

    def range(self, figure: str) -> Range:
        """Returns the range of an attribute of ``StepTime``."""
        value, low, high = (float(getattr(time, figure)) for time in (self.expected, self.fastest, self.slowest))
        return Range(value, low, high)


def step_times(work: Workload, split: Split) -> StepTimes:
    """Returns the seconds of an average step with this split, and their bounds."""
    fastest, slowest = (replace(work, rates=rates) for rates in (work.rates.fastest(), work.rates.slowest()))
    return StepTimes(step_time(work, split), step_time(fastest, split), step_time(slowest, split))


def step_time(work: Workload, split: Split) -> StepTime:
    """Returns the seconds of an average step with this split."""
    rollouts = work.config.objective.needs_rollouts
    encode, update = _encode(work, split), _update(work, split)
    rollout = work.demand.micro_batches * _rollout(work, split) if rollouts else 0.0
    replay = _replay(work, split, stale=False) if rollouts else 0.0
    return StepTime(
        encode=encode,
        rollout=rollout,
        replay=replay,
        update=update,
        encode_no_grad=encode if rollouts else 0.0,
        stale_replay=_replay(work, split, stale=True) if rollouts else 0.0,
        overlaps=not split.shared and rollouts,
    )


def _encode(work: Workload, split: Split) -> float:
    images = math.ceil(work.config.data.batch_size / split.learners)
    forward = images * encoder_forward(work.shape.tower) / work.rates.encoder.value
    reading = work.rates.encode_overhead.value * images / work.learner.images
    return work.demand.micro_batches * (forward + reading)


def _update(work: Workload, split: Split) -> float:
    images = math.ceil(work.config.data.batch_size / split.learners)
    operations = images * encoder_backward(work.shape.tower, checkpointing=work.learner.checkpointing)
    backward = work.demand.micro_batches * operations / work.rates.backward.value
    optimizer = OPTIMIZER_BYTES * work.learner.trainable.params / work.rates.update.value
    # A ring passes every gradient twice, but for its own share.
    travelling = 2 * FLOAT32 * work.learner.trainable.params * (split.learners - 1) / split.learners
    return backward + optimizer + travelling / work.rates.link.value


def _rollout(work: Workload, split: Split) -> float:
    """Seconds of one micro-batch on the worker with most groups."""
    rollout, group, rates = work.config.rollout, work.group, work.rates
    groups = math.ceil(rollout.pairs_per_batch / split.rollouts)
    if rates.rollout_tokens.value:
        return groups * rollout.group_size * work.token_counts.completion / rates.rollout_tokens.value
    prefill = groups * group.prefill / (rates.prefill.value * split.rollout_gpus)
    sequences = groups * rollout.group_size
    waves = math.ceil(sequences / rollout.max_sequences)
    at_once = sequences / waves
    context = work.token_counts.prompt + work.token_counts.completion / 2
    products = work.shape.decoder.layer_products + work.shape.decoder.head_products
    read = products * work.shape.value_bytes + at_once * context * work.rollout.token_bytes
    operations = at_once * group.decode / (rollout.group_size * work.token_counts.completion)
    one_step = max(
        read / (rates.decode.value * split.rollout_gpus),
        operations / (rates.decode_operations.value * split.rollout_gpus),
    )
    return prefill + waves * work.token_counts.completion * (one_step + rates.engine_step.value)


def _replay(work: Workload, split: Split, *, stale: bool) -> float:
    """Seconds of the worker with most groups; layers over several devices work one after the other."""
    groups = work.demand.trained_groups
    most = math.ceil(groups / split.replays) if split.replays else groups
    if split.replays and groups < split.replays:
        most = 1
    return most * work.group.replay(stale=stale) / work.rates.replay.value
