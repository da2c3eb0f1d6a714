"""Durations in words."""

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
