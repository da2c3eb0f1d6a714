"""The pulse of a worker, on a clock of the test's own: no Ray, no waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saga_dist.errors import DeadlineExceeded
from saga_dist.runtime.ray import supervision
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.supervision import Clocks, Failure, SupervisedWorker

HEARTBEAT_S, TICK_S = 10.0, 0.1


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(supervision, "time", found)
    monkeypatch.setattr(supervision.ray, "get", lambda ref, timeout: WorkerInfo(1, "", "", ""))
    return found


def noticed_after(clock: Clock, hangs_at: float, until: float) -> float | None:
    """When a busy worker that answers at once until it hangs is found silent, seconds after the hang."""
    clock.now = 0.0
    remote: Any = lambda: SimpleNamespace(remote=object)  # noqa: E731  (every call gives a new reference)
    actor = SimpleNamespace(start=remote(), health=remote())
    expected: list[Any] = []
    clocks = Clocks(start_s=1e6, lease_s=1e6, heartbeat_s=HEARTBEAT_S)
    worker = SupervisedWorker("worker", lambda: actor, clocks, lambda: "", expected.append)
    worker.spawn()
    assert worker.look(set(worker.references())) is None and worker.running
    answer: Any = object()
    worker.begin(answer)
    while clock.now < until:
        clock.now += TICK_S
        answered = set(worker.references()) - {answer} if clock.now < hangs_at else set()
        event = worker.look(answered)
        if event is not None:
            assert isinstance(event, Failure) and isinstance(event.error, DeadlineExceeded)
            assert "no sign of life for 10 s" in str(event.error)
            return clock.now - hangs_at
    return None


@pytest.mark.parametrize("hangs_at", [0.05, 2.0, 4.95, 5.05, 5.15, 7.0, 9.95, 10.05, 10.25, 31.4])
def test_a_hang_is_noticed_within_two_heartbeats(clock: Clock, hangs_at: float) -> None:
    noticed = noticed_after(clock, hangs_at, until=hangs_at + 10 * HEARTBEAT_S)
    assert noticed is not None
    assert HEARTBEAT_S / 2 < noticed <= 1.5 * HEARTBEAT_S + 3 * TICK_S


def test_whoever_answers_lives(clock: Clock) -> None:
    assert noticed_after(clock, float("inf"), until=50 * HEARTBEAT_S) is None
