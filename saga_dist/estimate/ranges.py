"""Estimated quantities with the interval that assumed rates leave open."""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.estimate.formatting import number


@dataclass(frozen=True, slots=True)
class Range:
    """A quantity at the expected rates, and the interval it stays in while every assumed rate stays in its own."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        """Returns the quantity multiplied by a positive factor."""
        return Range(factor * self.value, factor * self.low, factor * self.high)

    def dividing(self, dividend: float) -> Range:
        """Returns a positive dividend divided by the quantity."""
        return Range(dividend / self.value, dividend / self.high, dividend / self.low)

    def __str__(self) -> str:
        """Returns two significant digits, ``1.5 (1.1–2.4)``, without the interval where it is no wider than they."""
        value, low, high = number(self.value), number(self.low), number(self.high)
        return value if low == high else f"{value} ({low}–{high})"
