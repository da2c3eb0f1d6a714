"""How many micro-batches a step takes until K groups contribute: dynamic sampling, on paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saga_dist.config import RunConfig

CONTRIBUTING = 0.5
"""Share of groups whose completions disagree: an assumption, until a run has measured it."""


@dataclass(frozen=True, slots=True)
class SamplingDemand:
    """What an average step takes and trains on."""

    contributing_share: float
    micro_batches: float
    """Mean."""
    micro_batches_often: int
    """What 99 of 100 steps stay within."""
    micro_batches_most: int
    trained_groups: float
    """Mean number of groups that are replayed."""
    source: str


def demand(config: RunConfig, contributing_share: float | None = None, source: str = "") -> SamplingDemand:
    """Returns how much sampling a step takes.

    Args:
        config: of the run.
        contributing_share: of the groups; None for the assumption.
        source: of that share.
    """
    rollout = config.rollout
    if not config.objective.needs_rollouts:
        return SamplingDemand(0.0, 1.0, 1, 1, 0.0, "only the metric loss trains")
    share = CONTRIBUTING if contributing_share is None else contributing_share
    most, wanted = rollout.max_micro_batches, rollout.contributing_groups
    pairs = rollout.pairs_per_batch
    # A step takes more than m batches when those give fewer than K; groups contribute independently.
    goes_on = [_fewer_than(wanted, pairs * count, share) for count in range(1, most + 1)]
    often = next((count for count, more in enumerate(goes_on, start=1) if more <= 0.01), most)
    mean = 1 + sum(goes_on[:-1])
    return SamplingDemand(
        contributing_share=share,
        micro_batches=mean,
        micro_batches_often=often,
        micro_batches_most=most,
        trained_groups=min(float(wanted), share * pairs * mean),
        source=source or f"assumed: {share:.0%} of the groups contribute",
    )


def _fewer_than(wanted: int, draws: int, share: float) -> float:
    """Probability that fewer than ``wanted`` of so many groups contribute."""
    if share >= 1:
        return float(draws < wanted)
    if share <= 0:
        return 1.0
    return math.fsum(
        math.comb(draws, hits) * share**hits * (1 - share) ** (draws - hits) for hits in range(min(wanted, draws + 1))
    )
