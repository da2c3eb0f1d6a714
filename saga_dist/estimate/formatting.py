"""Numbers as people read them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Returns three digits of a number, all of those before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def size(count: float) -> str:
    """Returns bytes in decimal units, as cards and disks are sold."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= step:
            return f"{number(count / step)} {unit}"
    return f"{count:.0f} B"
