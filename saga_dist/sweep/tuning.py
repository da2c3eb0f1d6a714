"""Choice of a tuned variant's option, for each seed by itself, on validation classes."""

from __future__ import annotations

from collections.abc import Sequence

from saga_dist.errors import DataError
from saga_dist.sweep.plan import Cell

CHOICE_SPLIT = "val"
"""Split whose Recall@1 decides."""


def chosen_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Returns the finished cells that stand in the table: of a tuned variant the best option for each seed.

    The best option has the highest validation Recall@1, in a tie the first. A seed is left out while one of its options
    is not finished, because the choice would not be the same later.

    Args:
        cells: all cells of the table.

    Raises:
        DataError: a cell with options has no validation classes, or results cannot be read.
    """
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.variant.name, cell.seed), []).append(cell)
    return [max(group, key=_deciding_recall) for group in groups.values() if all(cell.finished for cell in group)]


def _deciding_recall(cell: Cell) -> float:
    """Returns the Recall@1 that decides between options; 0 for a cell that is the only one of its variant and seed."""
    if cell.option is None:
        return 0.0
    split = cell.results().method(cell.method).splits.get(CHOICE_SPLIT)
    if split is None:
        raise DataError(
            "has no validation classes to choose an option on",
            where=str(cell.directory),
            fix="set data.val_fraction above 0, or leave options out",
        )
    return split.recall_at_1
