"""The benches that start Ray, in their smallest size."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from saga_dist.bench.common import Report, Size
from saga_dist.cli.bench import Bench, measure

pytestmark = pytest.mark.cluster


def test_tokens_arrive_equal_and_without_a_copy(
    assert_readable: Callable[[Report], None], ray_cluster: dict[str, str]
) -> None:
    report = measure(Bench.TRANSPORT, Size.TINY)
    assert_readable(report)
    assert report.rows[0].detail["shared_buffers"] == report.rows[0].detail["pairs"] == 2


@pytest.mark.slow
def test_twice_the_workers_is_measured_on_the_real_pool() -> None:
    report = measure(Bench.SCALING, Size.TINY)
    cases = ["1 workers", "1 workers: efficiency", "2 workers", "2 workers: efficiency"]
    assert [row.case for row in report.rows] == [
        *cases,
        "learner idle, 1 ahead",
        "learner idle, 2 ahead",
        *(f"micro-batches of 4{what}" for what in ("", ", learner idle", ", rollout idle")),
        "no latency, 2 workers",
        "no latency, 8 simulated workers",
    ]
    assert all(row.ours >= 0 and math.isfinite(row.ours) for row in report.rows)
    alone = [False, True, False, True, True, True, *[False] * 3, True, True]
    assert [row.other is None for row in report.rows] == alone
    assert report.equal, "steps of several micro-batches trained to the same weights on both sides"
    assert report.rows[6].detail["early_groups"] > 0
