"""Expected number of micro-batches that a step needs until K groups contribute (dynamic sampling)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saga_dist.config import RunConfig

CONTRIBUTING = 0.5
"""Share of groups whose rewards vary. An assumption, used unless a run has measured it."""


@dataclass(frozen=True, slots=True)
class DynamicSampling:
    """Expected micro-batches and trained groups of a step."""

    contributing_share: float
    """Share of groups whose rewards vary, 0 to 1."""
    micro_batches_mean: float
    """Mean number of micro-batches per step."""
    micro_batches_p99: int
    """99th percentile of the number of micro-batches per step."""
    micro_batches_max: int
    """Largest number of micro-batches per step, ``rollout.max_micro_batches``."""
    trained_groups: float
    """Mean number of groups per step that are replayed, at most K."""
    source: str
    """Source of ``contributing_share``, as printed with it."""


def dynamic_sampling(config: RunConfig, contributing_share: float | None = None, source: str = "") -> DynamicSampling:
    """Returns the expected sampling of a step, when every group contributes with the same probability, independently.

    Args:
        config: configuration of the run.
        contributing_share: share of groups whose rewards vary, 0 to 1; None for ``CONTRIBUTING``.
        source: source of that share, for reports.
    """
    rollout = config.rollout
    if not config.objective.needs_mllm:
        return DynamicSampling(0.0, 1.0, 1, 1, 0.0, "only the metric loss trains")
    if config.objective.needs_verdicts:
        return DynamicSampling(1.0, 1.0, 1, 1, float(rollout.pairs_per_batch), "every pair trains, nothing is sampled")
    share = CONTRIBUTING if contributing_share is None else contributing_share
    limit, wanted = rollout.max_micro_batches, rollout.contributing_groups
    pairs = rollout.pairs_per_batch
    # Entry m - 1 is P(step needs more than m batches) = P(m batches have fewer than K contributing groups).
    exceeds = [_fewer_than(wanted, pairs * count, share) for count in range(1, limit + 1)]
    p99 = next((count for count, probability in enumerate(exceeds, start=1) if probability <= 0.01), limit)
    mean = 1 + sum(exceeds[:-1])
    return DynamicSampling(
        contributing_share=share,
        micro_batches_mean=mean,
        micro_batches_p99=p99,
        micro_batches_max=limit,
        trained_groups=min(float(wanted), share * pairs * mean),
        source=source or f"assumed: {share:.0%} of the groups contribute",
    )


def _fewer_than(wanted: int, groups: int, share: float) -> float:
    """Returns the binomial probability that fewer than ``wanted`` of ``groups`` groups contribute."""
    if share >= 1:
        return float(groups < wanted)
    if share <= 0:
        return 1.0
    return math.fsum(
        math.comb(groups, hits) * share**hits * (1 - share) ** (groups - hits)
        for hits in range(min(wanted, groups + 1))
    )
