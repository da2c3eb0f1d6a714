"""What the finished cells of a table say together: mean and spread over seeds, intervals, paired tests."""

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
FIGURES = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "nmi")
_TEST_SEED = 0


class Figure(Section):
    """A figure over seeds, a share in [0, 1]."""

    mean: float
    sd: float | None
    """Sample standard deviation over seeds; None with one seed."""
    values: tuple[float, ...]
    """Of each seed."""


class PairedComparison(Section):
    """A paired test against another variant: over classes, on the hits at rank 1 averaged over the common seeds."""

    variant: str
    seeds: tuple[int, ...]
    difference: float
    """Recall@1 minus the other's, a share."""
    low: float
    high: float
    p_value: float


class SummaryRow(Section):
    """One variant."""

    name: str
    label: str
    seeds: tuple[int, ...]
    """Those that are finished."""
    figures: dict[str, Figure]
    confidence_interval: tuple[float, float] | None
    """95 %, of mean Recall@1, by a bootstrap over classes."""
    paper: PublishedFigures | None
    versus: tuple[PairedComparison, ...]


class Summary(Section):
    """A table so far: what ``table.json`` holds."""

    title: str
    split: str = SPLIT
    num_queries: int
    num_classes: int
    rows: tuple[SummaryRow, ...]
    missing: dict[str, str] = Field(default_factory=dict)
    """Cells without results, and why or how far they are."""

    def label(self, name: str) -> str:
        """Returns what the table calls a variant."""
        return next(row.label for row in self.rows if row.name == name)


def summarise(table: Table, cells: Sequence[Cell], failures: dict[str, str]) -> Summary:
    """Returns the table of the finished cells.

    Args:
        table: what the rows are called and tested against.
        cells: all cells of the table.
        failures: why cells failed, by name.

    Raises:
        DataError: results cannot be read, or two cells met different queries.
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
    """[Q] share of the seeds in which each query has a hit at rank 1."""
    share: np.ndarray = np.mean([hits[cell.name].at(1) for cell in cells], axis=0)
    return share


def _versus(
    own: Sequence[Cell], other: Sequence[Cell], hits: dict[str, FirstHits], labels_Q: np.ndarray
) -> PairedComparison | None:
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
    """The classes of the queries, which all cells must share: otherwise nothing is paired."""
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
