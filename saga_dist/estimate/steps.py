"""Seconds of one step: of each role, and of the whole step with and without overlap of rollouts and learner.

    sync        encode ──► rollout ──► replay ──► update                 sum of all four
    overlapped  encode, replay, update of step s │ rollouts of s + 1     maximum of the two

Threads read the images of the next micro-batches meanwhile; a step of either kind takes at least as long as they do.
Groups are distributed evenly over rollout and replay workers, and a group is not divided. So a role saturates when it
has one worker for every group: rollouts at the pairs of a micro-batch, replay at the groups that train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from saga_dist.config import RunConfig
from saga_dist.estimate.memory import FLOAT32, LearnerMemory, RolloutMemory
from saga_dist.estimate.operations import OPTIMIZER_BYTES, GroupOperations, encoder_backward, encoder_forward
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Rates
from saga_dist.estimate.sampling import DynamicSampling
from saga_dist.estimate.shapes import ModelShape
from saga_dist.estimate.token_counts import TokenCounts

ROLES = ("encode", "rollout", "replay", "update")
"""Phases of a sync step, in order; names of attributes of ``StepTime``."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that the duration of a step depends on, except the allocation of devices."""

    config: RunConfig
    """Configuration of the run."""
    shape: ModelShape
    """Sizes of the model."""
    token_counts: TokenCounts
    """Tokens of prompt and completions."""
    dynamic_sampling: DynamicSampling
    """Expected micro-batches and trained groups of a step."""
    group: GroupOperations
    """Operations of one group."""
    learner: LearnerMemory
    """Memory of a learner process of the configuration."""
    rollout: RolloutMemory
    """Memory of a rollout worker, also when the run has no engine."""
    rates: Rates
    """Rates that convert operations and bytes into seconds."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Allocation of processes and GPUs to the roles."""

    learners: int
    """Number of learner processes."""
    rollouts: int
    """Number of rollout workers; 0 when nothing is sampled."""
    replays: int
    """Number of replay workers; 0 when replay runs in the learner's process."""
    rollout_gpus: int = 1
    """GPUs per rollout worker."""
    replay_gpus: int = 1
    """GPUs per replay worker."""
    shared: bool = False
    """True when all roles share one device."""

    @property
    def gpus(self) -> int:
        """Number of devices used."""
        if self.shared:
            return 1
        return self.learners + self.rollouts * self.rollout_gpus + self.replays * self.replay_gpus


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of an average step."""

    encode: float
    """Seconds to encode the images of all micro-batches, and to read them if no threads do."""
    rollout: float
    """Seconds to generate the groups of all micro-batches."""
    replay: float
    """Seconds to replay on-policy groups."""
    update: float
    """Seconds of tower backward, gradient all-reduce and optimizer."""
    encode_no_grad: float
    """Seconds of the additional encoding of prefetched batches."""
    stale_replay: float
    """Seconds to replay stale groups, which have a second forward pass."""
    overlaps: bool
    """True when rollouts have devices of their own, so that they can overlap with the learner."""
    reading: float = 0.0
    """Seconds in which threads read the images of all micro-batches, while the rest of the step runs."""

    @property
    def sync(self) -> float:
        """Seconds of a step whose rollouts come from the encoder of the same step."""
        return max(self.reading, self.encode + self.rollout + self.replay + self.update)

    @property
    def overlapped(self) -> float:
        """Seconds of a step with ``rollout.max_staleness`` of 1 or more; on one device the roles do not overlap."""
        learner = self.encode_no_grad + self.encode + self.stale_replay + self.update
        return max(self.reading, self.rollout, learner) if self.overlaps else max(self.reading, self.rollout + learner)

    @property
    def learner(self) -> float:
        """Seconds of encode and update, the phases that are divided among the learner's processes."""
        return self.encode + self.update

    @property
    def longest(self) -> str:
        """Name of the phase that takes the largest share of a sync step."""
        return max(ROLES, key=lambda role: float(getattr(self, role)))


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Durations of a step at the expected rates, and at both ends of the ranges of assumed rates."""

    expected: StepTime
    """Durations at the expected rates."""
    fastest: StepTime
    """Durations with every assumed rate at the fast end of its range."""
    slowest: StepTime
    """Durations with every assumed rate at the slow end of its range."""

    def range(self, attribute: str) -> Range:
        """Returns the range of the attribute of ``StepTime`` with this name, in seconds."""
        value, low, high = (float(getattr(time, attribute)) for time in (self.expected, self.fastest, self.slowest))
        return Range(value, low, high)


def step_times(work: Workload, allocation: Allocation) -> StepTimes:
    """Returns the durations of an average step with this allocation, at expected, fast and slow rates."""
    fastest, slowest = (replace(work, rates=rates) for rates in (work.rates.fastest(), work.rates.slowest()))
    return StepTimes(step_time(work, allocation), step_time(fastest, allocation), step_time(slowest, allocation))


def step_time(work: Workload, allocation: Allocation) -> StepTime:
    """Returns the durations of an average step with this allocation, at the workload's rates."""
    rollouts, replays = work.config.objective.needs_rollouts, work.config.objective.needs_mllm
    threads = work.config.data.decode_threads
    reading, update = _reading_s(work, allocation), _update_s(work, allocation)
    forward = _forward_s(work, allocation)
    encode = forward if threads else forward + reading
    rollout = work.dynamic_sampling.micro_batches_mean * _rollout_s(work, allocation) if rollouts else 0.0
    replay = _replay_s(work, allocation, stale=False) if replays else 0.0
    return StepTime(
        encode=encode,
        rollout=rollout,
        replay=replay,
        update=update,
        encode_no_grad=encode if rollouts else 0.0,
        stale_replay=_replay_s(work, allocation, stale=True) if rollouts else 0.0,
        overlaps=not allocation.shared and rollouts,
        reading=reading / threads if threads else 0.0,
    )


def _forward_s(work: Workload, allocation: Allocation) -> float:
    """Returns the seconds of the tower's forward pass over all micro-batches of a step."""
    images = math.ceil(work.config.data.batch_size / allocation.learners)
    forward = images * encoder_forward(work.shape.tower) / work.rates.encoder.value
    return work.dynamic_sampling.micro_batches_mean * forward


def _reading_s(work: Workload, allocation: Allocation) -> float:
    """Returns the seconds to read the images of all micro-batches of a step on one core of each learner process."""
    images = math.ceil(work.config.data.batch_size / allocation.learners)
    return work.dynamic_sampling.micro_batches_mean * work.rates.encode_overhead.value * images / work.learner.images


def _update_s(work: Workload, allocation: Allocation) -> float:
    """Returns the seconds of tower backward, gradient all-reduce and optimizer in a step."""
    images = math.ceil(work.config.data.batch_size / allocation.learners)
    operations = images * encoder_backward(work.shape.tower, checkpointing=work.learner.checkpointing)
    backward = work.dynamic_sampling.micro_batches_mean * operations / work.rates.backward.value
    optimizer = OPTIMIZER_BYTES * work.learner.trainable.params / work.rates.update.value
    # A ring all-reduce sends 2 (n - 1) / n times the gradients' bytes from each process.
    sent = 2 * FLOAT32 * work.learner.trainable.params * (allocation.learners - 1) / allocation.learners
    return backward + optimizer + sent / work.rates.link.value


def _rollout_s(work: Workload, allocation: Allocation) -> float:
    """Returns the seconds of one micro-batch on the worker with the most groups."""
    rollout, group, rates = work.config.rollout, work.group, work.rates
    groups = math.ceil(rollout.pairs_per_batch / allocation.rollouts)
    if rates.rollout_tokens.value:
        return groups * rollout.group_size * work.token_counts.completion / rates.rollout_tokens.value
    prefill = groups * group.prefill / (rates.prefill.value * allocation.rollout_gpus)
    sequences = groups * rollout.group_size
    num_steps = _engine_steps(work, sequences)
    concurrent = sequences * work.token_counts.completion / num_steps  # mean over the steps: short ones leave earlier
    context = work.token_counts.prompt + work.token_counts.completion / 2  # mean over the tokens of a completion
    weights = work.shape.decoder.layer_matmul_params + work.shape.decoder.output_matmul_params
    read_bytes = weights * work.shape.value_bytes + concurrent * context * work.rollout.kv_token_bytes
    operations = concurrent * group.decode / (rollout.group_size * work.token_counts.completion)
    engine_step = max(
        read_bytes / (rates.decode.value * allocation.rollout_gpus),
        operations / (rates.decode_operations.value * allocation.rollout_gpus),
    )
    return prefill + num_steps * (engine_step + rates.engine_step.value)


def _engine_steps(work: Workload, sequences: int) -> float:
    """Returns the decoding steps of an engine for so many completions, the longest of which end last.

    With more completions than the engine takes at a time, others take the places of finished ones at once if the
    engine is fed, else when the longest of a round has ended.
    """
    rollout, mean = work.config.rollout, work.token_counts.completion
    longest = max(mean, min(float(rollout.max_tokens), mean * work.rates.longest.value))
    rounds = math.ceil(sequences / rollout.max_sequences)
    is_fed = rollout.continuous_feeding and work.config.runtime.kind == "ray" and rollout.engine != "transformers"
    return (rounds - 1) * (mean if is_fed else longest) + longest


def _replay_s(work: Workload, allocation: Allocation, *, stale: bool) -> float:
    """Returns the seconds of the replay worker with the most groups.

    A worker with several devices is no faster: they hold consecutive layers and work one after the other.
    """
    groups = work.dynamic_sampling.trained_groups
    most = math.ceil(groups / allocation.replays) if allocation.replays else groups
    if allocation.replays and groups < allocation.replays:
        most = 1
    return most * work.group.replay(stale=stale) / work.rates.replay.value
