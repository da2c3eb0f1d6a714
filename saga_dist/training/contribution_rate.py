"""Estimate of how many micro-batches a step will use, from the share of recent groups that contributed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from saga_dist.types import ScoredGroup

RECENT_GROUPS = 256
"""Groups over which the contribution rate is averaged. It changes slowly in training; this is 16 of the paper's
micro-batches."""


class ContributionRate:
    """Moving mean of the share of groups that contribute, over the last ``RECENT_GROUPS`` groups."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=RECENT_GROUPS)

    def add(self, groups: Iterable[ScoredGroup]) -> None:
        """Adds groups, in order of submission."""
        self._recent.extend(group.contributes for group in groups)

    def likely_batches(self, num_groups: int, *, pairs_per_batch: int, most: int) -> int:
        """Returns the number of micro-batches that are expected to hold so many contributing groups.

        It is ``num_groups`` / (rate x ``pairs_per_batch``), rounded up, and at most ``most``; 1 as long as no rate is
        known.

        Args:
            num_groups: contributing groups that are missing, at least 1.
            pairs_per_batch: pairs per micro-batch.
            most: largest number to return, at least 1; returned when none of the recent groups contributed.
        """
        if not self._recent:
            return 1
        # Whole numbers, because rounding up must not follow the rounding error of a quotient.
        expected = sum(self._recent) * pairs_per_batch
        return min(most, -(-num_groups * len(self._recent) // expected)) if expected else most
