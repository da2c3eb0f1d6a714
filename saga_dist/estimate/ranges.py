"""Estimated quantities with the interval that follows from the ranges of assumed rates."""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.estimate.formatting import number


@dataclass(frozen=True, slots=True)
class Range:
    """A quantity with the interval that contains it while every assumed rate lies in its range."""

    value: float
    """Value at the expected rates."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    def __mul__(self, factor: float) -> Range:
        """Returns the quantity multiplied by a positive factor."""
        return Range(factor * self.value, factor * self.low, factor * self.high)

    def __rtruediv__(self, dividend: float) -> Range:
        """Returns a positive dividend divided by the quantity."""
        return Range(dividend / self.value, dividend / self.high, dividend / self.low)

    def __str__(self) -> str:
        """Returns value and interval to two significant digits, ``1.5 (1.1–2.4)``; the value alone where both ends
        round to the same text."""
        value, low, high = number(self.value), number(self.low), number(self.high)
        return value if low == high else f"{value} ({low}–{high})"
