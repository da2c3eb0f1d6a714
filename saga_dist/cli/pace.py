"""Pace of a long piece of work: when the next line about it is due, how fast it goes and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from saga_dist.utils.durations import pace

FIRST_GAP_S, GAP_FACTOR, LONGEST_GAP_S = 4.0, 1.5, 300.0
"""Seconds between the first two lines, growth from one gap to the next, and the longest gap."""


class Pace:
    """Counts parts of some work that are done.

    Args:
        unit: one part, singular, for messages (``step``).
        quiet_s: seconds in which no line is due; work that is done by then needs none.
        clock: returns seconds; monotonic.
    """

    def __init__(self, unit: str, *, quiet_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._unit, self._clock = unit, clock
        self._first: tuple[int, float] | None = None
        """Parts done and time at the first report."""
        self._next_line, self._gap = clock() + quiet_s, FIRST_GAP_S
        self._has_lines = False

    def is_due(self, done: int, total: int) -> bool:
        """Returns True when a line should be printed: at growing gaps, and at the last part after other lines.

        Args:
            done: parts done so far.
            total: parts of the whole work.
        """
        now = self._clock()
        self._first = self._first or (done, now)
        if now < self._next_line and not (done == total and self._has_lines):
            return False
        self._has_lines = True
        self._next_line, self._gap = now + self._gap, min(self._gap * GAP_FACTOR, LONGEST_GAP_S)
        return True

    def text(self, done: int, total: int) -> str:
        """Returns pace and time left, e.g. ``3.1 s/step, about 4 min left``; empty as long as neither is known."""
        if self._first is None:
            return ""
        before, started = self._first
        seconds = self._clock() - started
        if done <= before or seconds <= 0:
            return ""
        return pace(seconds / (done - before), total - done, self._unit)
