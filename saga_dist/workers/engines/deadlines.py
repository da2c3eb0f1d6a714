"""The error of an engine whose groups are not finished in time."""

from __future__ import annotations

from saga_dist.errors import DeadlineExceeded


def groups_too_late(number: int, total: int, deadline_s: float, *, where: str) -> DeadlineExceeded:
    """Returns the error to raise when ``number`` of ``total`` groups are unfinished after ``deadline_s`` seconds."""
    return DeadlineExceeded(
        f"{number} of {total} groups unfinished after {deadline_s:g} s",
        where=where,
        fix="raise rollout.deadline_s, or lower rollout.groups_per_lease or rollout.max_tokens",
    )
