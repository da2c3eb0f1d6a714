"""How a number of GPUs is best divided among the roles, and where further ones bring nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from saga_dist.estimate.memory import LearnerMemory, ReplayMemory
from saga_dist.estimate.placement import CONTEXT_BYTES, ENGINE_WORK_BYTES, SLACK
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Card
from saga_dist.estimate.steps import Split, StepTimes, Workload, step_time, step_times

WHOLE_CARD = 0.95
"""Share of a card that a role alone on it may fill."""
ALIKE = 0.02
"""Of two divisions whose times differ by less, the one with fewer GPUs is taken."""
ENGINE_SHARE = 0.9
"""``rollout.gpu_memory_utilization`` of an engine alone on its card."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run on a number of GPUs."""

    gpus: int
    """That there are."""
    split: Split
    times: StepTimes
    overlapped: bool
    steps: int

    @property
    def seconds_range(self) -> Range:
        """Seconds of a step."""
        return self.times.range("overlapped" if self.overlapped else "sync")

    @property
    def seconds(self) -> float:
        """Seconds of a step at the expected rates."""
        return self.seconds_range.value

    @property
    def hours_range(self) -> Range:
        """Hours of the whole run."""
        return self.seconds_range.times(self.steps / 3600)

    @property
    def hours(self) -> float:
        """Hours of the whole run at the expected rates."""
        return self.hours_range.value

    @property
    def idle(self) -> int:
        """GPUs that have nothing to do."""
        return self.gpus - self.split.gpus

    def cost_range(self, price: float) -> Range:
        """Returns what the GPUs cost, idle ones included, at a price per GPU and hour."""
        return self.hours_range.times(self.gpus * price)

    def cost(self, price: float) -> float:
        """Returns the cost at the expected rates."""
        return self.cost_range(price).value


@dataclass(frozen=True, slots=True)
class Saturation:
    """Where a role stops gaining."""

    role: str
    workers: int
    """Beyond so many it gains nothing."""
    seconds_range: Range
    """Seconds of the role in a step, at so many."""
    why: str

    @property
    def seconds(self) -> float:
        """Seconds of the role at the expected rates."""
        return self.seconds_range.value


def own_split(work: Workload, *, shared: bool) -> Split:
    """Returns the split that the configuration asks for.

    Args:
        work: of the run.
        shared: True where all of it is on one device.
    """
    config = work.config
    workers = 1 if config.runtime.kind == "serial" else config.rollout.workers
    return Split(
        learners=config.runtime.learner_processes,
        rollouts=max(1, workers),
        replays=config.replay.workers,
        rollout_gpus=config.rollout.tensor_parallel_size,
        replay_gpus=max(1, int(config.replay.num_gpus)),
        shared=shared,
    )


def best_plan(work: Workload, card: Card, replay: ReplayMemory, gpus: int, *, overlapped: bool) -> Plan | None:
    """Returns the fastest division of so many GPUs in which every role fits its cards; None when there is none.

    One GPU is shared by all roles, as the configuration says.
    """

    def plan(split: Split) -> Plan:
        return Plan(gpus, split, step_times(work, split), overlapped, work.config.run.steps)

    if gpus == 1:
        return plan(Split(1, 1, 0, shared=True))
    plans = [plan(split) for split in _splits(work, card, replay, gpus)]
    if not plans:
        return None
    fastest = min(one.seconds for one in plans)
    fast = [one for one in plans if one.seconds <= (1 + ALIKE) * fastest]
    return min(fast, key=lambda one: (one.split.gpus, one.seconds))


def _splits(work: Workload, card: Card, replay: ReplayMemory, gpus: int) -> Iterator[Split]:
    engine_gpus, replay_gpus = _engine_gpus(work, card), _replay_gpus(card, replay)
    rollouts = work.config.objective.needs_rollouts
    for learners in _doubling(min(gpus, work.config.data.batch_size)):
        most_replays = math.ceil(work.demand.trained_groups)
        for replays in range(most_replays + 1) if rollouts else (0,):
            if learners > 1 and rollouts and not replays:
                continue  # token gradients must reach every process
            if not _learner_fits(work, card, learners, replay if rollouts and not replays else None):
                continue
            if not rollouts:
                yield Split(learners, 1, 0, rollout_gpus=0)
                continue
            room = gpus - learners - replays * replay_gpus
            workers = min(room // engine_gpus, work.config.rollout.pairs_per_batch)
            if workers >= 1:
                yield Split(learners, workers, replays, engine_gpus, replay_gpus)


def _learner_fits(work: Workload, card: Card, learners: int, replay: ReplayMemory | None) -> bool:
    images = math.ceil(work.config.data.batch_size / learners)
    memory: LearnerMemory = replace(work.learner, images=images, replay=replay)
    needed = memory.peak(work.demand.micro_batches_often) * SLACK + CONTEXT_BYTES
    return needed <= WHOLE_CARD * card.memory


def _engine_gpus(work: Workload, card: Card) -> int:
    """Smallest power of two of cards with room for weights and the cache of one group."""
    one_group = work.token_counts.prompt + work.config.rollout.group_size * work.token_counts.completion
    cache = one_group * work.rollout.token_bytes
    for count in _doubling(64):
        if (work.rollout.weights + cache) / count + ENGINE_WORK_BYTES <= ENGINE_SHARE * card.memory:
            return max(count, work.config.rollout.tensor_parallel_size)
    return 64


def _replay_gpus(card: Card, replay: ReplayMemory) -> int:
    """Fewest cards over which layers and what they keep have room."""
    needed = (replay.weights + replay.work) * SLACK
    return max(1, math.ceil(needed / (WHOLE_CARD * card.memory - CONTEXT_BYTES)))


def saturations(work: Workload) -> list[Saturation]:
    """Returns for every role how many workers are the most that it gains from."""
    best = min(
        (Split(learners, 1, 1) for learners in _doubling(work.config.data.batch_size)),
        key=lambda split: step_time(work, split).learner,
    )
    found = [
        Saturation(
            "learner",
            best.learners,
            step_times(work, best).range("learner"),
            "then optimizer and gradients on their way take longer than what is divided",
        )
    ]
    if work.config.objective.needs_rollouts:
        pairs = work.config.rollout.pairs_per_batch
        groups = max(1, math.ceil(work.demand.trained_groups))
        rollout = step_times(work, Split(1, pairs, 1)).range("rollout")
        replay = step_times(work, Split(1, 1, groups)).range("replay")
        found += [
            Saturation("rollout", pairs, rollout, "a worker for every pair; tokens come one after the other"),
            Saturation("replay", groups, replay, "a worker for every group that trains"),
        ]
    return found


def _doubling(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
