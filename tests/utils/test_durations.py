"""Durations in words."""

from __future__ import annotations

import pytest

from saga_dist.utils.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (240, "4 min"), (7800, "2 h 10 min"), (86400, "24 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
