"""The buffer of scored groups of one optimizer step: selection of the groups that train, and rollout statistics.

Groups are ordered by submission, which is encoded in the pair ids (step, micro-batch, number), and not by arrival. So a
serial run and a Ray run select the same groups, whatever the order in which workers finish. This requires that a caller
adds all groups of a micro-batch before it reads ``full``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saga_dist.errors import TrainingError
from saga_dist.objectives.reward import json_is_valid
from saga_dist.protocols import GradientHandle
from saga_dist.types import ScoredGroup

_DIGITS = re.compile(r"(\d+)")


class RolloutBuffer:
    """Collects groups until K of them contribute, which means that their rewards vary (dynamic sampling).

    Args:
        capacity: K, number of contributing groups that a step trains on, at least 1.

    Raises:
        TrainingError: ``capacity`` is below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise TrainingError(f"a rollout buffer of {capacity} groups", expected="at least 1")
        self._capacity = capacity
        self._groups: dict[str, ScoredGroup] = {}
        self._num_duplicates = 0

    def add(self, group: ScoredGroup) -> bool:
        """Adds a group and returns True; drops it and returns False when its pair has a group already.

        Two groups of one pair occur when a task was retried and both attempts finished.
        """
        if group.pair.pair_id in self._groups:
            self._num_duplicates += 1
            return False
        self._groups[group.pair.pair_id] = group
        return True

    def remove(self, pair_id: str) -> None:
        """Removes the group of a pair, on which replay failed."""
        del self._groups[pair_id]

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[ScoredGroup]:
        """All groups, contributing or not, in order of submission."""
        return [self._groups[pair_id] for pair_id in sorted(self._groups, key=submission_order)]

    @property
    def full(self) -> bool:
        """True when at least K groups contribute."""
        return sum(group.contributes for group in self._groups.values()) >= self._capacity

    def selected(self) -> list[ScoredGroup]:
        """Returns the first K contributing groups in order of submission, or all when there are fewer."""
        return [group for group in self.groups if group.contributes][: self._capacity]

    def outcomes(self) -> dict[str, list[str]]:
        """Returns the pair ids by outcome, for the ledger: ``trained``, ``surplus`` and ``zero_variance``."""
        trained = [group.pair_id for group in self.selected()]
        return {
            "trained": trained,
            "surplus": [group.pair_id for group in self.groups if group.contributes and group.pair_id not in trained],
            "zero_variance": [group.pair_id for group in self.groups if not group.contributes],
        }

    @property
    def num_tokens(self) -> int:
        """|T|, the number of generated tokens of the selected groups; the denominator of L_GRPO."""
        return sum(group.num_tokens for group in self.selected())

    def metrics(self) -> dict[str, float]:
        """Returns statistics over all groups; a statistic that no group provides is left out.

        ``rollout/verdict_accuracy_same`` and ``_different`` are the shares of completions with the correct verdict on
        pairs of one class and of two classes; ``rollout/json_valid_share`` is the share of completions that are exactly
        one JSON object.
        """
        groups = self.groups
        metrics = {"rollout/groups": float(len(groups)), "rollout/duplicates": float(self._num_duplicates)}
        if not groups:
            return metrics
        contributing = [group for group in groups if group.contributes]
        completions = [group.completions for group in groups]
        metrics |= {
            "rollout/contributing_share": len(contributing) / len(groups),
            "rollout/contributing_same": float(sum(group.pair.same for group in contributing)),
            "rollout/contributing_different": float(sum(not group.pair.same for group in contributing)),
            "rollout/selected": float(len(self.selected())),
            "rollout/reward_mean": _mean([reward for group in groups for reward in group.rewards_G]),
            "rollout/unparseable_share": _mean([verdict is None for group in groups for verdict in group.verdicts]),
            "rollout/json_valid_share": _mean([json_is_valid(text) for one in completions for text in one.texts]),
            "rollout/tokens": float(sum(group.num_tokens for group in groups)),
            "rollout/completion_tokens_mean": _mean([len(ids) for one in completions for ids in one.token_ids]),
            "rollout/truncated_share": _mean([why == "length" for one in completions for why in one.finish_reasons]),
        }
        for name, same in (("same", True), ("different", False)):
            right = [verdict == same for group in groups if group.pair.same == same for verdict in group.verdicts]
            if right:
                metrics[f"rollout/verdict_accuracy_{name}"] = _mean(right)
        return metrics


def with_replay(groups: Sequence[ScoredGroup], gradients: Sequence[GradientHandle]) -> list[ScoredGroup]:
    """Returns the groups for recording; groups that trained have the log-probabilities from replay.

    Args:
        groups: all groups of a step.
        gradients: results of replay for the groups that trained.
    """
    replayed = {gradient.pair_id: gradient.mismatch.replayed for gradient in gradients}
    return [replace(group, replayed=replayed.get(group.pair_id, ())) for group in groups]


def submission_order(pair_id: str) -> list[int | str]:
    """Returns a sort key that compares the numbers in a pair id by value: ``m2`` comes before ``m10``."""
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(pair_id)]


def _mean(values: list[float] | list[bool] | list[int]) -> float:
    return float(np.mean(values, dtype=np.float64))
