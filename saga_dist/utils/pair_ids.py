"""Ids of the pairs of a training run, e.g. ``s000013.m0.p03``: step, micro-batch and number of the pair.

What users see counts steps from 1: metrics, recordings, pair ids, pages. Random numbers are drawn from counters that
begin at 0, the optimizer steps done before the step, as they always were; these functions lead from one to the other.
"""

from __future__ import annotations

import re

_TRAINING = re.compile(r"s(\d+)\.m(\d+)\.p(\d+)")


def pair_id_prefix(steps_done: int, index: int) -> str:
    """Returns the ids of a micro-batch's pairs without their numbers.

    Args:
        steps_done: optimizer steps done before the step, from 0.
        index: number of the micro-batch within the step, from 0.
    """
    return f"s{steps_done + 1:06d}.m{index}.p"


def step_of(pair_id: str) -> int | None:
    """Returns the step of a pair, from 1; None for an id of another form, as of evaluation pairs."""
    found = _TRAINING.fullmatch(pair_id)
    return int(found[1]) if found else None


def micro_batch_of(pair_id: str) -> tuple[int, int] | None:
    """Returns the counters of a pair's micro-batch: optimizer steps done before its step, and its index in the step."""
    found = _TRAINING.fullmatch(pair_id)
    return (int(found[1]) - 1, int(found[2])) if found else None


def random_key(pair_id: str) -> str:
    """Returns the key of a pair's random numbers: its id with the counter, which begins at 0, in place of the step.

    Ids had this form up to version 0.1 of this package, so the keys, and with them every completion, stay what they
    were. An id of another form is its own key.
    """
    return _renumbered(pair_id, -1)


def from_zero_based(pair_id: str) -> str:
    """Returns the present id of a pair that was recorded with a step counted from 0."""
    return _renumbered(pair_id, 1)


def _renumbered(pair_id: str, change: int) -> str:
    found = _TRAINING.fullmatch(pair_id)
    return f"s{int(found[1]) + change:06d}{pair_id[found.end(1) :]}" if found else pair_id
