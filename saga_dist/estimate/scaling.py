"""Finds the fastest allocation of a number of GPUs to the roles, and the worker count at which a role saturates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from saga_dist.estimate.memory import LearnerMemory, ReplayMemory
from saga_dist.estimate.placement import CUDA_CONTEXT_BYTES, SLACK
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Card
from saga_dist.estimate.steps import Allocation, StepTimes, Workload, step_time, step_times
from saga_dist.workers.engines.vllm_arguments import GPU_WORK_BYTES

MAX_MEMORY_SHARE = 0.95
"""Largest share of a card's memory that a role may use when it has the card to itself."""
TIE_TOLERANCE = 0.02
"""Relative difference in step time below which the allocation with fewer GPUs is preferred."""
ENGINE_MEMORY_SHARE = 0.9
"""``rollout.gpu_memory_utilization`` of an engine that has its card to itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations and cost of a run on a number of GPUs."""

    gpus: int
    """Number of GPUs available."""
    allocation: Allocation
    """Allocation of GPUs to the roles; it may leave GPUs idle."""
    times: StepTimes
    """Durations of a step with this allocation."""
    overlapped: bool
    """True when rollouts overlap with the learner (``rollout.max_staleness`` of 1 or more)."""
    steps: int
    """Optimizer steps of the run."""

    @property
    def seconds_range(self) -> Range:
        """Seconds per step."""
        return self.times.range("overlapped" if self.overlapped else "sync")

    @property
    def seconds(self) -> float:
        """Seconds per step at the expected rates."""
        return self.seconds_range.value

    @property
    def hours_range(self) -> Range:
        """Hours of the whole run."""
        return self.seconds_range * (self.steps / 3600)

    @property
    def hours(self) -> float:
        """Hours of the whole run at the expected rates."""
        return self.hours_range.value

    @property
    def idle(self) -> int:
        """Number of GPUs that the allocation does not use."""
        return self.gpus - self.allocation.gpus

    def cost_range(self, price: float) -> Range:
        """Returns the cost of the GPUs, idle ones included, at ``price`` per GPU and hour."""
        return self.hours_range * (self.gpus * price)

    def cost(self, price: float) -> float:
        """Returns the cost at the expected rates."""
        return self.cost_range(price).value


@dataclass(frozen=True, slots=True)
class Saturation:
    """Number of workers at which a role saturates: further workers do not make it faster."""

    role: str
    """``learner``, ``rollout`` or ``replay``."""
    workers: int
    """Smallest number of workers with the shortest duration."""
    seconds_range: Range
    """Seconds of the role per step, with that many workers."""
    why: str
    """Reason of the limit, for reports."""

    @property
    def seconds(self) -> float:
        """Seconds of the role at the expected rates."""
        return self.seconds_range.value


def configured_allocation(work: Workload, *, shared: bool) -> Allocation:
    """Returns the allocation that the configuration sets.

    Args:
        work: workload of the run.
        shared: True when all roles are on one device.
    """
    config = work.config
    workers = 1 if config.runtime.kind == "serial" else config.rollout.workers
    return Allocation(
        learners=config.runtime.learner_processes,
        rollouts=max(1, workers),
        replays=config.replay.workers,
        rollout_gpus=config.rollout.tensor_parallel_size,
        replay_gpus=max(1, int(config.replay.num_gpus)),
        shared=shared,
    )


def best_plan(work: Workload, card: Card, replay: ReplayMemory, gpus: int, *, overlapped: bool) -> Plan | None:
    """Returns the fastest allocation of ``gpus`` GPUs in which every role fits its cards; None when there is none.

    With one GPU, all roles share it, and whether they fit is not checked here.

    Args:
        work: workload of the run.
        card: kind of GPU.
        replay: memory of a replay worker.
        gpus: number of GPUs.
        overlapped: True to compare step times of overlapped training, False of synchronous training.
    """

    def plan(allocation: Allocation) -> Plan:
        return Plan(gpus, allocation, step_times(work, allocation), overlapped, work.config.run.steps)

    if gpus == 1:
        return plan(Allocation(1, 1, 0, shared=True))
    plans = [plan(allocation) for allocation in _allocations(work, card, replay, gpus)]
    if not plans:
        return None
    shortest = min(candidate.seconds for candidate in plans)
    fast = [candidate for candidate in plans if candidate.seconds <= (1 + TIE_TOLERANCE) * shortest]
    return min(fast, key=lambda candidate: (candidate.allocation.gpus, candidate.seconds))


def _allocations(work: Workload, card: Card, replay: ReplayMemory, gpus: int) -> Iterator[Allocation]:
    """Yields the allocations in which every role fits: powers of two of learners, any number of replay workers."""
    engine_gpus, replay_gpus = _engine_gpus(work, card), _replay_gpus(card, replay)
    rollouts, mllm = work.config.objective.needs_rollouts, work.config.objective.needs_mllm
    for learners in _powers_of_two(min(gpus, work.config.data.batch_size)):
        max_replays = math.ceil(work.dynamic_sampling.trained_groups)
        for replays in range(max_replays + 1) if mllm else (0,):
            if learners > 1 and mllm and not replays:
                continue  # several learner processes need replay workers, whose gradients reach all of them
            if not _learner_fits(work, card, learners, replay if mllm and not replays else None):
                continue
            remaining = gpus - learners - replays * replay_gpus
            if not rollouts:
                if remaining >= 0:
                    yield Allocation(learners, 0, replays, replay_gpus=replay_gpus)
                continue
            workers = min(remaining // engine_gpus, work.config.rollout.pairs_per_batch)
            if workers >= 1:
                yield Allocation(learners, workers, replays, engine_gpus, replay_gpus)


def _learner_fits(work: Workload, card: Card, learners: int, replay: ReplayMemory | None) -> bool:
    images = math.ceil(work.config.data.batch_size / learners)
    memory: LearnerMemory = replace(work.learner, images=images, replay=replay)
    needed = memory.peak(work.dynamic_sampling.micro_batches_p99) * SLACK + CUDA_CONTEXT_BYTES
    return needed <= MAX_MEMORY_SHARE * card.memory


def _engine_gpus(work: Workload, card: Card) -> int:
    """Returns the cards of one engine: the smallest power of two that holds the weights and one group's KV cache.

    The result is at least ``rollout.tensor_parallel_size`` and at most 64.
    """
    one_group = work.token_counts.prompt + work.config.rollout.group_size * work.token_counts.completion
    cache = one_group * work.rollout.kv_token_bytes
    for count in _powers_of_two(64):
        if (work.rollout.weights + cache) / count + GPU_WORK_BYTES <= ENGINE_MEMORY_SHARE * card.memory:
            return max(count, work.config.rollout.tensor_parallel_size)
    return 64


def _replay_gpus(card: Card, replay: ReplayMemory) -> int:
    """Returns the smallest number of cards that hold the layers and working set of a replay worker."""
    needed = (replay.weights + replay.working_set) * SLACK
    return max(1, math.ceil(needed / (MAX_MEMORY_SHARE * card.memory - CUDA_CONTEXT_BYTES)))


def saturations(work: Workload) -> list[Saturation]:
    """Returns for every role the number of workers at which it saturates."""
    best = min(
        (Allocation(learners, 1, 1) for learners in _powers_of_two(work.config.data.batch_size)),
        key=lambda allocation: step_time(work, allocation).learner,
    )
    found = [
        Saturation(
            "learner",
            best.learners,
            step_times(work, best).range("learner"),
            "limited by the all-reduce of gradients, and by one image per process",
        )
    ]
    if work.config.objective.needs_rollouts:
        pairs = work.config.rollout.pairs_per_batch
        rollout = step_times(work, Allocation(1, pairs, 1)).range("rollout")
        found.append(
            Saturation("rollout", pairs, rollout, "a worker for every pair; tokens are generated one after the other")
        )
    if work.config.objective.needs_mllm:
        groups = max(1, math.ceil(work.dynamic_sampling.trained_groups))
        replay = step_times(work, Allocation(1, 1, groups)).range("replay")
        found.append(Saturation("replay", groups, replay, "a worker for every group that trains"))
    return found


def _powers_of_two(limit: int) -> list[int]:
    """Returns the powers of two up to ``limit``."""
    return [1 << power for power in range(limit.bit_length()) if 1 << power <= limit]
