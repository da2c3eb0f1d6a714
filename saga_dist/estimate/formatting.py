"""Formats numbers and byte counts for printed tables."""

from __future__ import annotations

import math


def number(value: float, digits: int = 2) -> str:
    """Returns a number rounded to significant digits, without an exponent."""
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded))) if rounded else digits - 1
    return f"{rounded:,.{max(0, digits - 1 - exponent)}f}"


def size(count: float) -> str:
    """Returns a byte count in decimal units, as GPUs and disks are sold, with three significant digits.

    Times get two digits, because they rest on assumed rates; bytes are counted, so they get three.
    """
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= step:
            return f"{number(count / step, 3)} {unit}"
    return f"{count:.0f} B"
