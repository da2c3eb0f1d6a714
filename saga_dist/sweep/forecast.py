"""Time that the unfinished cells of a table will take, from the finished ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from saga_dist.sweep.plan import Cell
from saga_dist.utils.durations import duration


def forecast(cells: Sequence[Cell]) -> str:
    """Returns the number of unfinished cells and their expected time, e.g. ``12 of 30 cells to run, about 84 min``.

    A cell is expected to take the median time of the finished cells of its variant, or of all finished cells where its
    variant has none.

    Args:
        cells: all cells of the table.
    """
    left = [cell for cell in cells if not cell.finished]
    count = f"{len(left)} of {len(cells)} cells to run"
    seconds = expected_seconds(cells)
    if not left:
        return f"all {len(cells)} cells are finished"
    return f"{count}; time known after the first" if seconds is None else f"{count}, about {duration(seconds)}"


def expected_seconds(cells: Sequence[Cell]) -> float | None:
    """Returns the expected time of all unfinished cells in seconds; None while no cell is finished."""
    times: dict[str, list[float]] = {}
    for cell in cells:
        if cell.finished:
            times.setdefault(cell.variant.name, []).append(cell.results().method(cell.method).wall_s)
    if not times:
        return None
    overall = statistics.median(second for seconds in times.values() for second in seconds)
    return sum(
        statistics.median(times[cell.variant.name]) if cell.variant.name in times else overall
        for cell in cells
        if not cell.finished
    )
