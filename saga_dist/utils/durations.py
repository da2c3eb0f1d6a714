"""Durations and paces in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns a duration to the precision that matters to someone who waits: ``40 s``, ``4 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"


def pace(each_s: float, remaining: int, unit: str) -> str:
    """Returns how fast some work goes and how long it still takes, e.g. ``3.1 s/step, about 4 min left``.

    Args:
        each_s: seconds of one part, above 0.
        remaining: parts that are left; with 0 only the pace is said.
        unit: one part, singular (``step``).
    """
    if each_s >= 10:
        text = f"{each_s:.0f} s/{unit}"
    else:
        text = f"{each_s:.2g} s/{unit}" if each_s >= 1 else f"{1 / each_s:,.0f} {unit}s/s"
    return f"{text}, about {duration(each_s * remaining)} left" if remaining > 0 else text
