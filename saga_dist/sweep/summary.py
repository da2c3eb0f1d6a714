"""Summary of a table's finished cells: mean and standard deviation over seeds, intervals, paired tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from saga_dist.config import Section
from saga_dist.errors import DataError
from saga_dist.retrieval.first_hits import HITS_NAME, FirstHits, load_hits
from saga_dist.retrieval.metrics import clustered_interval, paired_test
from saga_dist.sweep.plan import Cell
from saga_dist.sweep.table import PublishedFigures, Table

SPLIT = "test"
"""Split whose results are summarised."""
FIGURES = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "nmi")
"""Fields of ``SplitResult`` that are summarised."""
_TEST_SEED = 0


class Figure(Section):
    """A metric over seeds, each value a share in [0, 1]."""

    mean: float
    """Mean over seeds."""
    sd: float | None
    """Sample standard deviation over seeds; None with one seed."""
    values: tuple[float, ...]
    """Value of each seed."""


class PairedComparison(Section):
    """A paired test of Recall@1 against another variant.

    The test swaps whole classes, on the hits at rank 1 averaged over the common seeds.
    """

    variant: str
    """Name of the other variant."""
    seeds: tuple[int, ...]
    """Seeds with which both variants are finished."""
    difference: float
    """Recall@1 minus the other variant's, as a share."""
    low: float
    """Lower end of the 95 % interval of the difference, by a bootstrap over classes."""
    high: float
    """Upper end of that interval."""
    p_value: float
    """Two-sided p-value, in (0, 1], not corrected for multiple tests."""


class SummaryRow(Section):
    """Summary of one variant."""

    name: str
    """Name of the variant."""
    label: str
    """Text of the variant in the table."""
    seeds: tuple[int, ...]
    """Seeds of the finished cells."""
    figures: dict[str, Figure]
    """Metrics by name, as in ``FIGURES``; empty without finished cells."""
    confidence_interval: tuple[float, float] | None
    """95 % interval of the mean Recall@1, by a bootstrap over classes; None without finished cells."""
    paper: PublishedFigures | None
    """Published figures of the row; None when there are none."""
    versus: tuple[PairedComparison, ...]
    """Paired tests against other variants with common finished seeds."""


class Summary(Section):
    """Summary of a table with its finished cells; the content of ``table.json``."""

    title: str
    """Title of the table."""
    split: str = SPLIT
    """Split of the results."""
    num_queries: int
    """Q, number of queries."""
    num_classes: int
    """C, number of classes among the queries."""
    rows: tuple[SummaryRow, ...]
    """One row per variant, in the order of the table."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Cells without results by name, with their progress or the reason of their failure."""

    def label(self, name: str) -> str:
        """Returns the text of a variant in the table from its name."""
        return next(row.label for row in self.rows if row.name == name)


def summarise(table: Table, cells: Sequence[Cell], failures: dict[str, str]) -> Summary:
    """Returns the summary of a table's finished cells.

    Args:
        table: table that defines rows, labels and opponents.
        cells: all cells of the table.
        failures: reasons of failed cells by name.

    Raises:
        DataError: results cannot be read, or two cells were evaluated on different queries.
    """
    done = [cell for cell in cells if cell.finished]
    hits = {cell.name: load_hits(cell.directory / HITS_NAME, cell.method, SPLIT) for cell in done}
    labels_Q = _common_labels(hits)
    rows = []
    for variant in table.variant:
        own = [cell for cell in done if cell.variant.name == variant.name]
        others = [[cell for cell in done if cell.variant.name == name] for name in table.opponents(variant)]
        rows.append(
            SummaryRow(
                name=variant.name,
                label=variant.label,
                seeds=tuple(cell.seed for cell in own),
                figures=_figures(own),
                confidence_interval=clustered_interval(_mean_hits(own, hits), labels_Q, seed=_TEST_SEED)
                if own
                else None,
                paper=variant.paper,
                versus=tuple(filter(None, (_versus(own, other, hits, labels_Q) for other in others))),
            )
        )
    missing = {cell.name: cell.progress() for cell in cells if not cell.finished}
    missing |= {name: f"failed: {reason}" for name, reason in failures.items() if name in missing}
    return Summary(
        title=table.title,
        num_queries=len(labels_Q),
        num_classes=len(np.unique(labels_Q)),
        rows=tuple(rows),
        missing=missing,
    )


def _figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    results = [cell.results().method(cell.method).splits[SPLIT] for cell in cells]
    values = {name: [float(result.model_dump()[name]) for result in results] for name in FIGURES}
    return {name: over_seeds(list_of_values) for name, list_of_values in values.items() if list_of_values}


def over_seeds(values: Sequence[float]) -> Figure:
    """Returns the values with their mean and sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Figure(mean=math.fsum(values) / len(values), sd=spread, values=tuple(values))


def _mean_hits(cells: Sequence[Cell], hits: dict[str, FirstHits]) -> np.ndarray:
    """Returns float64 [Q], the share of the cells in which each query has a hit at rank 1."""
    share: np.ndarray = np.mean([hits[cell.name].at(1) for cell in cells], axis=0)
    return share


def _versus(
    own: Sequence[Cell], other: Sequence[Cell], hits: dict[str, FirstHits], labels_Q: np.ndarray
) -> PairedComparison | None:
    """Returns the paired test between the cells of two variants over their common seeds; None without any."""
    seeds = sorted({cell.seed for cell in own} & {cell.seed for cell in other})
    if not seeds:
        return None
    ours, theirs = (_mean_hits([cell for cell in cells if cell.seed in seeds], hits) for cells in (own, other))
    test = paired_test(ours, theirs, labels_Q, seed=_TEST_SEED)
    return PairedComparison(
        variant=other[0].variant.name,
        seeds=tuple(seeds),
        difference=test.difference,
        low=test.low,
        high=test.high,
        p_value=test.p_value,
    )


def _common_labels(hits: dict[str, FirstHits]) -> np.ndarray:
    """Returns int64 [Q], the classes of the queries.

    Raises:
        DataError: the cells have different queries, so that their hits are not paired.
    """
    first = next(iter(hits), None)
    if first is None:
        return np.zeros(0, np.int64)
    for name, found in hits.items():
        if not np.array_equal(found.labels_Q, hits[first].labels_Q):
            raise DataError(
                f"{name} and {first} were evaluated on other queries",
                where=f"split {SPLIT}",
                expected="one data set for the whole table",
                fix="run the older of them again in a new --out",
            )
    return hits[first].labels_Q
