"""Durations and paces in words."""

from __future__ import annotations

import pytest

from saga_dist.utils.durations import duration, pace


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (240, "4 min"), (7800, "2 h 10 min"), (86400, "24 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("each_s", "remaining", "text"),
    [
        (3.14, 40, "3.1 s/step, about 2 min left"),
        (123.0, 10, "123 s/step, about 20 min left"),
        (0.25, 100, "4 steps/s, about 25 s left"),
        (2.0, 0, "2 s/step"),
    ],
)
def test_a_pace_says_the_time_left(each_s: float, remaining: int, text: str) -> None:
    assert pace(each_s, remaining, "step") == text
