"""Utilisation of the workers of a pool: their running and busy time, and their tasks, updated at every change."""

from __future__ import annotations

import threading


class Usage:
    """Sums the seconds that workers ran and were busy since the last ``take``; safe for use by several threads.

    Args:
        now: present time of a monotonic clock, seconds.
        tasks_per_worker: largest number of tasks in flight at one worker.
    """

    def __init__(self, now: float, tasks_per_worker: int = 1) -> None:
        self._lock, self._tasks_per_worker = threading.Lock(), tasks_per_worker
        self._num_in_flight, self._in_flight_s = 0, 0.0
        self._taken_at = self._added_at = now
        self._running: set[str] = set()
        self._running_s = 0.0
        self._busy_since: dict[str, float] = {}
        self._busy_s: dict[str, float] = {}

    def note(self, now: float, worker: str, *, running: bool, busy: bool) -> None:
        """Records the state of a worker from a point in time on.

        Args:
            now: present time of the clock, seconds.
            worker: name of the worker.
            running: True when its process is up.
            busy: True when it runs a lease.
        """
        with self._lock:
            self._add_running(now)
            self._add_busy(now, worker)
            if running:
                self._running.add(worker)
            else:
                self._running.discard(worker)
            if busy:
                self._busy_since[worker] = now

    def note_in_flight(self, now: float, number: int) -> None:
        """Records the number of tasks in flight at all workers together from a point in time on."""
        with self._lock:
            self._add_running(now)
            self._num_in_flight = number

    def take(self, now: float) -> dict[str, float]:
        """Returns the utilisation since the last call and starts a new interval.

        Args:
            now: present time of the clock, seconds.

        Returns ``busy_s`` (sum over workers), ``busy_max_s`` (largest of a worker) and, if any worker was running,
        ``busy_per_worker_s`` (``busy_s`` by the mean number of running workers), ``idle_share`` (idle share of the
        running time, in [0, 1]) and ``in_flight_share`` (mean tasks in flight at a running worker, divided by the
        largest number).
        """
        with self._lock:
            self._add_running(now)
            for worker in tuple(self._busy_since):
                self._add_busy(now, worker)
                self._busy_since[worker] = now
            busy_s, running_s, elapsed_s = self._busy_s, self._running_s, now - self._taken_at
            in_flight_s = self._in_flight_s
            self._busy_s, self._running_s, self._in_flight_s, self._taken_at = {}, 0.0, 0.0, now
        found = {"busy_s": sum(busy_s.values()), "busy_max_s": max(busy_s.values(), default=0.0)}
        if running_s:
            found["busy_per_worker_s"] = found["busy_s"] * elapsed_s / running_s
            found["idle_share"] = 1 - found["busy_s"] / running_s
            found["in_flight_share"] = in_flight_s / running_s / self._tasks_per_worker
        return found

    def _add_running(self, now: float) -> None:
        elapsed_s, self._added_at = now - self._added_at, now
        self._running_s += elapsed_s * len(self._running)
        self._in_flight_s += elapsed_s * self._num_in_flight

    def _add_busy(self, now: float, worker: str) -> None:
        if worker in self._busy_since:
            self._busy_s[worker] = self._busy_s.get(worker, 0.0) + now - self._busy_since.pop(worker)
