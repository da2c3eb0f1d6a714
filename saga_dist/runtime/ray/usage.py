"""How much of their time workers worked: busy and running time, added up between the moments they were looked at."""

from __future__ import annotations

from collections.abc import Sequence


class Usage:
    """Seconds that workers ran and were busy since the last ``take``; states hold from one ``note`` to the next.

    Args:
        now: seconds, of a clock that only goes forward.
    """

    def __init__(self, now: float) -> None:
        self._since = self._noted = now
        self._running: Sequence[str] = ()
        self._busy: Sequence[str] = ()
        self._running_s = 0.0
        self._busy_s: dict[str, float] = {}

    def note(self, now: float, *, running: Sequence[str], busy: Sequence[str]) -> None:
        """Notes which workers run and which of them are busy from ``now`` on."""
        self._add_up(now)
        self._running, self._busy = running, busy

    def take(self, now: float) -> dict[str, float]:
        """Returns busy seconds of all workers, of the busiest, per worker, and the idle share of all running time.

        A worker counts for as long as it ran; where none ran there is neither mean nor share.
        """
        self._add_up(now)
        busy_s, running_s, elapsed_s = self._busy_s, self._running_s, now - self._since
        self._busy_s, self._running_s, self._since = {}, 0.0, now
        found = {"busy_s": sum(busy_s.values()), "busy_max_s": max(busy_s.values(), default=0.0)}
        if running_s:
            found["busy_per_worker_s"] = found["busy_s"] * elapsed_s / running_s
            found["idle_share"] = 1 - found["busy_s"] / running_s
        return found

    def _add_up(self, now: float) -> None:
        passed_s, self._noted = now - self._noted, now
        self._running_s += passed_s * len(self._running)
        for name in self._busy:
            self._busy_s[name] = self._busy_s.get(name, 0.0) + passed_s
