"""Idle share and busy seconds against hand-computed numbers."""

from __future__ import annotations

import pytest

from saga_dist.runtime.ray.usage import Usage


def test_share_is_weighted_by_the_time_that_workers_ran() -> None:
    usage = Usage(now=100.0, tasks_per_worker=4)
    usage.note(110.0, "a", running=True, busy=False)  # nobody for 10 s
    usage.note(120.0, "a", running=True, busy=True)  # a idles for 10 s
    usage.note(120.0, "b", running=True, busy=False)
    usage.note_in_flight(125.0, 3)  # 3 tasks for 5 s, then 5 for 20 s
    usage.note_in_flight(130.0, 5)
    usage.note(140.0, "a", running=False, busy=False)  # a works 20 s, b idles 20 s; then a is gone
    usage.note(140.0, "b", running=True, busy=True)
    assert usage.take(150.0) == {  # b works 10 s
        "busy_s": pytest.approx(30.0),
        "busy_max_s": pytest.approx(20.0),
        "busy_per_worker_s": pytest.approx(30.0 / (60.0 / 50.0)),  # 60 worker-seconds in 50 s: 1.2 workers
        "idle_share": pytest.approx(1 - 30.0 / 60.0),
        "in_flight_share": pytest.approx((3 * 5 + 5 * 20) / (60.0 * 4)),
    }
    later = usage.take(160.0)
    assert later["idle_share"] == 0.0, "what holds goes on to hold: b works on"
    assert later["in_flight_share"] == pytest.approx(5 / 4)
    usage.note(160.0, "b", running=False, busy=False)
    assert usage.take(170.0) == {"busy_s": 0.0, "busy_max_s": 0.0}, "no share without a worker"
