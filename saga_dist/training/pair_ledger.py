"""The pair ledger: one JSON line per step with the outcome of every pair; a resume drops rows after the checkpoint.

A row lists each pair of each micro-batch of the step exactly once: as ``trained``, ``surplus`` (contributing beyond K),
``zero_variance`` (all rewards equal, so no gradient) or ``quarantined`` (with the reason). ``cancelled`` lists the
pairs of further micro-batches, whose rollouts had been started when the step was filled without them. ``audit``
compares the ledger with the pairs that the sampler gives for these steps: no pair may be lost or trained twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError
from saga_dist.metrics.log import JsonLines
from saga_dist.types import Quarantined
from saga_dist.utils.pair_ids import from_zero_based, step_of

LEDGER_NAME = "ledger.jsonl"
"""Name of the ledger in a run directory."""
OUTCOMES = ("trained", "surplus", "zero_variance", "quarantined")
"""Outcomes of a pair of a step's micro-batches."""
CANCELLED = "cancelled"
"""Key of the pairs of further micro-batches whose rollouts were cancelled; missing in rows of earlier versions."""
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
        self,
        step: int,
        num_batches: int,
        pair_ids: Mapping[str, Sequence[str]],
        quarantined: Sequence[Quarantined],
        cancelled: Sequence[str] = (),
    ) -> None:
        """Writes the outcomes of the pairs of a finished step.

        Args:
            step: optimizer steps done, including this one.
            num_batches: micro-batches of the step.
            pair_ids: outcome, without ``quarantined``, to the pairs that had it; an outcome left out had no pairs.
            quarantined: pairs without a result, because workers failed on them.
            cancelled: pairs of the micro-batches after these whose rollouts were cancelled.
        """
        self._lines.append(
            {
                "step": step,
                "micro_batches": num_batches,
                **{outcome: list(pair_ids.get(outcome, ())) for outcome in OUTCOMES if outcome != "quarantined"},
                "quarantined": {one.pair_id: one.reason for one in quarantined},
                CANCELLED: list(cancelled),
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
        """Returns the number of pairs with each outcome, and of ``cancelled`` ones, in steps 1 to ``num_steps``.

        Args:
            sampler: sampler of the run.
            num_steps: optimizer steps of the run.
            pairs_per_batch: pairs per micro-batch.

        Raises:
            CheckpointError: a step is missing or repeated; the pairs of a step are not those of the sampler, each
                exactly once; or the cancelled ones are not those of the micro-batches after them.
        """
        counts = dict.fromkeys((*OUTCOMES, CANCELLED), 0)
        rows = [{_FORMER_NAMES.get(key, key): value for key, value in row.items()} for row in self._lines.rows()]
        steps = [int(row["step"]) for row in rows]
        if steps != list(range(1, num_steps + 1)):
            raise CheckpointError(
                f"steps {steps[:3]} ... {steps[-3:]}",
                where=str(self._lines.path),
                expected=f"1 to {num_steps}, each once",
            )
        for row in rows:
            num_batches, cancelled = row["micro_batches"], row.get(CANCELLED, [])
            pairs_of = partial(_pairs_of, sampler, row["step"] - 1, pairs_per_batch)
            listed = [_present(pair_id, row["step"]) for outcome in OUTCOMES for pair_id in row[outcome]]
            self._compare(listed, pairs_of(0, num_batches), row["step"], "its micro-batches")
            further = pairs_of(num_batches, num_batches + -(-len(cancelled) // pairs_per_batch))
            self._compare(cancelled, further, row["step"], "its cancelled micro-batches")
            for outcome in OUTCOMES:
                counts[outcome] += len(row[outcome])
            counts[CANCELLED] += len(cancelled)
        return counts

    def _compare(self, listed: Sequence[str], expected: Sequence[str], step: int, what: str) -> None:
        """Compares the pairs that a row lists with those of the sampler.

        Raises:
            CheckpointError: they differ.
        """
        if sorted(listed) != sorted(expected):
            different = sorted(set(listed) ^ set(expected)) or list(listed)
            raise CheckpointError(
                f"{len(listed)} pairs, the first that differs: {different[0]}",
                where=f"{self._lines.path}, step {step}",
                expected=f"the {len(expected)} pairs of {what}, each once",
            )


def _pairs_of(sampler: ClassBalancedSampler, step: int, pairs_per_batch: int, first: int, end: int) -> list[str]:
    """Returns the pair ids of micro-batches ``first`` to ``end`` - 1 of a step, which is counted from 0."""
    batches = (sampler.micro_batch(step, index, pairs_per_batch) for index in range(first, end))
    return [pair.pair_id for batch in batches for pair in batch.pairs]


def _present(pair_id: str, step: int) -> str:
    """Returns the present id of a pair in a row of ``step``; ledgers of version 0.1 count steps in ids from 0."""
    return from_zero_based(pair_id) if step_of(pair_id) == step - 1 else pair_id
