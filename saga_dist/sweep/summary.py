"""Summary of a table's finished cells: mean and standard deviation over seeds, intervals, paired comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.first_hits import HITS_NAME, FirstHits, load_hits
from saga_dist.retrieval.metrics import PairedTest, clustered_interval
from saga_dist.retrieval.results import TrainingFacts
from saga_dist.retrieval.run_comparison import RunComparison, compare_runs, paired_t_test, t_interval, wider
from saga_dist.sweep.plan import Cell
from saga_dist.sweep.records import SPLIT, Figure, PairedComparison, Summary, SummaryRow
from saga_dist.sweep.table import Table, Variant
from saga_dist.sweep.tuning import chosen_cells
from saga_dist.training.training_facts import training_facts

FIGURES = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "nmi")
"""Fields of ``SplitResult`` that are summarised."""
_TEST_SEED = 0


def summarise(table: Table, cells: Sequence[Cell], failures: dict[str, str]) -> Summary:
    """Returns the summary of a table's finished cells.

    Args:
        table: table that defines rows, labels and opponents.
        cells: all cells of the table.
        failures: reasons of failed cells by name.

    Raises:
        DataError: results cannot be read, or two cells were evaluated on different queries.
    """
    done = chosen_cells(cells)
    hits = {cell.name: load_hits(cell.directory / HITS_NAME, cell.method, SPLIT) for cell in done}
    labels_Q = _common_labels(hits)
    rows = [_row(table, variant, done, hits, labels_Q) for variant in table.variant]
    missing = {cell.name: cell.progress() for cell in cells if not cell.finished}
    missing |= {name: f"failed: {reason}" for name, reason in failures.items() if name in missing}
    return Summary(
        title=table.title,
        num_queries=len(labels_Q),
        num_classes=len(np.unique(labels_Q)),
        num_unfindable=max(
            (cell.results().method(cell.method).splits[SPLIT].num_unfindable for cell in done), default=0
        ),
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


def _row(
    table: Table, variant: Variant, done: Sequence[Cell], hits: dict[str, FirstHits], labels_Q: np.ndarray
) -> SummaryRow:
    """Returns the summary of one variant from the finished cells of the table."""
    own = [cell for cell in done if cell.variant.name == variant.name]
    others = [[cell for cell in done if cell.variant.name == name] for name in table.opponents(variant)]
    class_interval = seed_interval = None
    if own:
        hits_SQ = _hits(own, hits)
        class_interval = clustered_interval(hits_SQ.mean(0), labels_Q, seed=_TEST_SEED)
        seed_interval = _seed_interval(hits_SQ.mean(1))
    return SummaryRow(
        name=variant.name,
        label=variant.label,
        seeds=tuple(cell.seed for cell in own),
        figures=_figures(own),
        confidence_interval=_wider(class_interval, seed_interval),
        class_interval=class_interval,
        seed_interval=seed_interval,
        paper=table.published(variant),
        choices=tuple(" ".join(variant.options[cell.option]) for cell in own if cell.option is not None),
        versus=tuple(filter(None, (_versus(own, other, hits, labels_Q) for other in others))),
        training=tuple(dict.fromkeys(map(_facts, own))),
    )


def _facts(cell: Cell) -> TrainingFacts:
    """Returns the facts about the training of a finished cell."""
    selected_step = cell.results().method(cell.method).selected_step
    pretrained = cell.variant.pretrained
    return training_facts(cell.config, cell.directory, pretrained=pretrained, selected_step=selected_step)


def _seed_interval(recalls_S: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """Returns Student's interval of the mean Recall@1 over the seeds, cut to [0, 1]; None with one seed."""
    if len(recalls_S) < 2:
        return None
    low, high = t_interval(recalls_S)
    return max(0.0, low), min(1.0, high)


def _wider(
    class_interval: tuple[float, float] | None, seed_interval: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Returns the wider of two intervals; None without any."""
    if class_interval is None:
        return None
    return seed_interval if wider(class_interval, seed_interval) == "seeds" else class_interval


def _hits(cells: Sequence[Cell], hits: dict[str, FirstHits]) -> np.ndarray:
    """Returns bool [S, Q], True where a query has a hit at rank 1, for each of S cells."""
    return np.stack([hits[cell.name].at(1) for cell in cells])


def _versus(
    own: Sequence[Cell], other: Sequence[Cell], hits: dict[str, FirstHits], labels_Q: np.ndarray
) -> PairedComparison | None:
    """Returns the comparison between the cells of two variants over their common seeds; None without any."""
    seeds = sorted({cell.seed for cell in own} & {cell.seed for cell in other})
    if not seeds:
        return None
    by_seed = [{cell.seed: cell for cell in cells} for cells in (own, other)]
    ours_SQ, theirs_SQ = (_hits([cells[seed] for seed in seeds], hits) for cells in by_seed)
    found = compare_runs(ours_SQ, theirs_SQ, labels_Q, seed=_TEST_SEED)
    return PairedComparison.of(other[0].variant.name, tuple(seeds), found)


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


def with_seed_tests(summary: Summary) -> Summary:
    """Returns the summary with the intervals over seeds that a file of version 0.1.0 lacks.

    They follow from Recall@1 of each seed, which such a file has. A comparison stays as it is where the file lacks a
    value of one of its seeds, because the row was collected elsewhere.
    """
    recalls = {
        row.name: dict(zip(row.seeds, row.figures["recall_at_1"].values, strict=True))
        for row in summary.rows
        if row.figures
    }
    rows = []
    for row in summary.rows:
        class_interval = row.class_interval or row.confidence_interval
        seed_interval = row.seed_interval or _seed_interval(list(recalls.get(row.name, {}).values()))
        rows.append(
            row.model_copy(
                update={
                    "confidence_interval": _wider(class_interval, seed_interval),
                    "class_interval": class_interval,
                    "seed_interval": seed_interval,
                    "versus": tuple(_with_seed_test(one, recalls[row.name], recalls) for one in row.versus),
                }
            )
        )
    return summary.model_copy(update={"rows": tuple(rows)})


def _with_seed_test(
    one: PairedComparison, own: dict[int, float], recalls: dict[str, dict[int, float]]
) -> PairedComparison:
    """Returns a comparison with its test over seeds, from Recall@1 by seed of its row and by row and seed of all."""
    other = recalls.get(one.variant, {})
    if one.over_seeds is not None:
        return one
    classes = one.class_test
    over_classes = PairedTest(one.difference, classes.low, classes.high, classes.p_value)
    seed_test = None
    if len(one.seeds) > 1 and set(one.seeds) <= own.keys() & other.keys():
        seed_test = paired_t_test([own[seed] for seed in one.seeds], [other[seed] for seed in one.seeds])
    return PairedComparison.of(one.variant, one.seeds, RunComparison(over_classes, seed_test))
