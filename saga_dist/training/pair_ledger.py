"""The pair ledger: one JSON line per step with the outcome of every pair; a resume drops rows after the checkpoint.

A row lists each pair of each micro-batch of the step exactly once: as ``trained``, ``surplus`` (contributing beyond K),
``zero_variance`` (all rewards equal, so no gradient) or ``quarantined`` (with the reason). ``audit`` compares the
ledger with the pairs that the sampler gives for these steps: no pair may be lost or trained twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError
from saga_dist.metrics.log import JsonLines
from saga_dist.types import Quarantined
from saga_dist.utils.pair_ids import from_zero_based, step_of

LEDGER_NAME = "ledger.jsonl"
"""Name of the ledger in a run directory."""
OUTCOMES = ("trained", "surplus", "zero_variance", "quarantined")
"""Outcomes of a pair."""
_FORMER_NAMES = {"spare": "surplus", "uniform": "zero_variance"}
"""Name of an outcome in ledgers of version 0.1 to its present name."""


class PairLedger:
    """The file ``ledger.jsonl`` of a run directory.

    Args:
        path: the file; created by the first ``append``.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def append(
        self, step: int, num_batches: int, pair_ids: Mapping[str, Sequence[str]], quarantined: Sequence[Quarantined]
    ) -> None:
        """Writes the outcomes of the pairs of a finished step.

        Args:
            step: optimizer steps done, including this one.
            num_batches: micro-batches of the step.
            pair_ids: outcome, without ``quarantined``, to the pairs that had it; an outcome left out had no pairs.
            quarantined: pairs without a result, because workers failed on them.
        """
        self._lines.append(
            {
                "step": step,
                "micro_batches": num_batches,
                **{outcome: list(pair_ids.get(outcome, ())) for outcome in OUTCOMES if outcome != "quarantined"},
                "quarantined": {one.pair_id: one.reason for one in quarantined},
            }
        )

    def truncate(self, *, after_step: int) -> None:
        """Drops the rows of steps after ``after_step``, and an incomplete last row from a crash."""
        self._lines.truncate(after_step=after_step)

    def micro_batches(self) -> dict[int, int]:
        """Returns the number of micro-batches of each step, by step counted from 1; empty without a ledger.

        Raises:
            CheckpointError: a line is not JSON.
        """
        if not self._lines.path.exists():
            return {}
        return {row["step"]: row["micro_batches"] for row in self._lines.rows(allow_cut_tail=True)}

    def audit(self, sampler: ClassBalancedSampler, num_steps: int, pairs_per_batch: int) -> dict[str, int]:
        """Returns the number of pairs with each outcome in steps 1 to ``num_steps``.

        Args:
            sampler: sampler of the run.
            num_steps: optimizer steps of the run.
            pairs_per_batch: pairs per micro-batch.

        Raises:
            CheckpointError: a step is missing or repeated, or the pairs of a step are not those of the sampler, each
                exactly once.
        """
        counts = dict.fromkeys(OUTCOMES, 0)
        rows = [{_FORMER_NAMES.get(key, key): value for key, value in row.items()} for row in self._lines.rows()]
        steps = [int(row["step"]) for row in rows]
        if steps != list(range(1, num_steps + 1)):
            raise CheckpointError(
                f"steps {steps[:3]} ... {steps[-3:]}",
                where=str(self._lines.path),
                expected=f"1 to {num_steps}, each once",
            )
        for row in rows:
            listed = [_present(pair_id, row["step"]) for outcome in OUTCOMES for pair_id in row[outcome]]
            expected = [
                pair.pair_id
                for index in range(row["micro_batches"])
                for pair in sampler.micro_batch(row["step"] - 1, index, pairs_per_batch).pairs
            ]
            if sorted(listed) != sorted(expected):
                different = sorted(set(listed) ^ set(expected)) or listed
                raise CheckpointError(
                    f"{len(listed)} pairs, the first that differs: {different[0]}",
                    where=f"{self._lines.path}, step {row['step']}",
                    expected=f"the {len(expected)} pairs of its micro-batches, each once",
                )
            for outcome in OUTCOMES:
                counts[outcome] += len(row[outcome])
        return counts


def _present(pair_id: str, step: int) -> str:
    """Returns the present id of a pair in a row of ``step``; ledgers of version 0.1 count steps in ids from 0."""
    return from_zero_based(pair_id) if step_of(pair_id) == step - 1 else pair_id
