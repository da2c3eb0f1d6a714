"""Interface of a rollout source, which provides the groups of each step: from workers, or from a recording."""

from __future__ import annotations

from typing import Any, Protocol

from saga_dist.protocols import EncodedBatch
from saga_dist.types import MicroBatch, Quarantined, ScoredGroup

Outcome = ScoredGroup | Quarantined
"""Outcome of the rollouts of a pair: its scored group, or the reason why there is none."""


class RolloutSource(Protocol):
    """Provides the groups of each step: from workers, or from a recording."""

    def prefetch(self, step: int) -> None:
        """Starts rollouts of this and later steps; does not wait for them."""

    def start(self, batch: MicroBatch, encoded: EncodedBatch) -> None:
        """Starts the rollouts of a micro-batch of the open step, and of those that the step will likely use after it.

        Args:
            batch: the micro-batch whose turn it is.
            encoded: tokens of its pairs at the present encoder version.
        """

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns one outcome per pair of a started batch, in the order of its pairs; waits for them."""

    def cancel_rest(self, step: int) -> list[str]:
        """Cancels the rollouts of a step that were started and not consumed; returns the ids of their pairs."""

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the behaviour tokens and the truncation of the importance weights of a group of the open step.

        The first value is the handle of the older tokens that the group was sampled from; None when these are the
        present tokens, or are not available. The second is the largest importance weight; None when the group is
        on-policy, so that every weight is 1.

        Args:
            group: a group of the open step.
            step: optimizer steps done before the open step.
        """

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Releases the state of a finished step; returns its metrics, named ``stage/quantity``.

        ``cancel_rest`` is called before.

        Args:
            step: optimizer steps done before the finished step.
            num_batches: micro-batches of the finished step.
        """

    def forget(self) -> None:
        """Drops all rollouts in progress, because the learner restarts from a checkpoint."""
