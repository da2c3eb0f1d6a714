"""The results section of the page: rows of ``results.json`` of one or several runs, and level lines for the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_dist.report.line_chart import Reference
from saga_dist.report.sources import RunFiles
from saga_dist.report.text import shown_name
from saga_dist.retrieval.results import MethodResult

VALIDATION = "validation/recall_at_1"
"""Metric that the level lines of the baselines belong to."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """Results of one method on one split."""

    run: str
    """Label of the run."""
    method: str
    """Name of the method."""
    split: str
    """Name of the split."""
    recalls: tuple[float, float, float, float]
    """Recall@1, 2, 4 and 8, in percent."""
    low: float
    """Lower end of the 95 % confidence interval of Recall@1, in percent."""
    high: float
    """Upper end of the 95 % confidence interval of Recall@1, in percent."""
    nmi: float
    """Normalised mutual information, in [0, 1]."""
    num_queries: int
    """Number of queries."""
    num_classes: int
    """Number of classes among them."""
    steps: str
    """Selected step and number of steps, as text; a dash for a method without training."""


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """Verdicts of the frozen MLLM on fixed pairs of one split; shares in [0, 1]."""

    run: str
    """Label of the run."""
    method: str
    """Name of the method."""
    split: str
    """Name of the split."""
    same_accuracy: float
    """Share of right verdicts on pairs of one class."""
    different_accuracy: float
    """Share of right verdicts on pairs of two classes."""
    json_valid_share: float
    """Share of completions that are valid JSON."""


def result_rows(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[ResultRow]:
    """Returns one row per split, run and method, the split ``test`` first; none for a run without results.

    Args:
        runs: the runs.
        labels: label of each run.
    """
    found = _methods(runs, labels)
    splits = sorted({split for _, method in found for split in method.splits}, key=lambda name: (name != "test", name))
    return [_result_row(run, method, split) for split in splits for run, method in found if split in method.splits]


def verdict_rows(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[VerdictRow]:
    """Returns one row per run, method and split with verdicts on fixed pairs."""
    return [
        VerdictRow(
            shown_name(run),
            shown_name(method.name),
            shown_name(split),
            one.same_accuracy,
            one.different_accuracy,
            one.json_valid_share,
        )
        for run, method in _methods(runs, labels)
        for split, one in method.verdicts.items()
    ]


def baselines(run: RunFiles) -> dict[str, list[Reference]]:
    """Returns level lines by metric: Recall@1 on the validation classes of every method but the run's own, the last."""
    methods = [] if run.results is None else run.results.methods[:-1]
    lines = [Reference(method.name, method.splits["val"].recall_at_1) for method in methods if "val" in method.splits]
    return {VALIDATION: lines} if lines else {}


def _methods(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[tuple[str, MethodResult]]:
    return [
        (label, method)
        for run, label in zip(runs, labels, strict=True)
        if run.results is not None
        for method in run.results.methods
    ]


def _result_row(run: str, method: MethodResult, split: str) -> ResultRow:
    found = method.splits[split]
    recalls = (found.recall_at_1, found.recall_at_2, found.recall_at_4, found.recall_at_8)
    low, high = found.confidence_interval
    return ResultRow(
        shown_name(run),
        shown_name(method.name),
        shown_name(split),
        (100 * recalls[0], 100 * recalls[1], 100 * recalls[2], 100 * recalls[3]),
        100 * low,
        100 * high,
        found.nmi,
        found.num_queries,
        found.num_classes,
        f"{method.selected_step} of {method.optimizer_steps}" if method.optimizer_steps else "–",
    )
