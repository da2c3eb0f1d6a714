"""The results of the diagnostics as tables of formatted strings, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saga_dist.diagnostics.schema import (
    AttentionEntropy,
    AttentionShares,
    Evidence,
    Gradients,
    Probes,
    RecallFigure,
    StepCosines,
    StepFigure,
)
from saga_dist.diagnostics.verdicts import STEP_METRICS
from saga_dist.retrieval.run_comparison import ONE_RUN

LOSS_NAMES = {"dml": "metric loss", "grpo": "GRPO", "kl": "attention", "text": "true text"}
"""Name of a loss in the records to its name in the tables."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A titled table of strings; the first column holds names, the others formatted numbers."""

    title: str
    """Title above the table."""
    headings: tuple[str, ...]
    """Column headings."""
    rows: Sequence[tuple[str, ...]]
    """Rows, each with one string per column."""
    note: str = ""
    """Explanation below the table; may be empty."""
    drawn: bool = False
    """True when the report also draws a chart of the table."""


def evidence_tables(evidence: Evidence) -> Iterator[TextTable]:
    """Yields one table for each diagnostic that has a result."""
    yield _recalls(evidence.recalls)
    if evidence.probes is not None:
        yield _probes(evidence.probes)
    if evidence.looks:
        yield _looks(evidence.looks)
    if evidence.gradients is not None:
        yield _norms(evidence.gradients)
        yield _cosines(evidence.gradients)
    if evidence.step_cosines:
        yield _step_cosines(evidence.step_cosines)
    if evidence.spread is not None:
        yield _spread(evidence.spread)
    if evidence.steps:
        yield _steps(evidence.steps)


def _recalls(recalls: Sequence[RecallFigure]) -> TextTable:
    rows = [(f"{one.space}, {one.encoder}", f"{100 * one.recall_at_1:.1f}", _range(*one.interval)) for one in recalls]
    headings, note = ("view of the images", "R@1", "95 %"), f"95 %: over test classes; {ONE_RUN}."
    return TextTable("Recall@1 on unseen classes, %", headings, rows, note=note, drawn=True)


def _probes(probes: Probes) -> TextTable:
    rows = [("chance", *(f"{100 * value:.0f}" for value in probes.chance), f"{100 * _mean(probes.chance):.1f}")]
    for column in probes.columns:
        cells = _with_errors(column.accuracy, column.error, ".0f")
        rows.append(
            (f"{column.space}, {column.encoder}", *cells, *_with_errors([column.mean], [column.mean_error], ".1f"))
        )
    for change in probes.changes:
        cells = _with_errors(change.difference, change.error, "+.0f")
        rows.append((f"{change.space}, change", *cells, *_with_errors([change.mean], [change.mean_error], "+.1f")))
    return TextTable(
        "Attribute accuracy on unseen classes, %",
        ("view of the images", *probes.attributes, "mean"),
        rows,
        "Linear probes, fitted on one half of the unseen classes and tested on the other, both ways; the MLLM read-out "
        "is the frozen MLLM’s own likeliest word. ± standard error over classes. change: trained minus pre-trained; "
        "below 0 is forgotten.",
        drawn=True,
    )


def _looks(looks: Sequence[AttentionShares]) -> TextTable:
    rows = [
        (
            f"{one.who}, {one.encoder}" if one.encoder else one.who,
            *(f"{100 * share:.1f}" for share in (one.part, one.bird, one.distractors)),
            f"{one.entropy:.2f}",
        )
        for one in looks
    ]
    return TextTable(
        "Where attention lies on unseen images, %",
        ("attention of", "part", "bird", "flowers", "entropy, nats"),
        rows,
        "part: the one whose word is generated, or the mean over all parts for attention that is not tied to one. A "
        "token belongs to a region that covers at least a tenth of it.",
        drawn=True,
    )


def _norms(gradients: Gradients) -> TextTable:
    rows = [
        (LOSS_NAMES[one.loss], *(f"{value:.3g}" for value in (one.tower, one.pooler, one.encoder, one.weight)))
        for one in gradients.norms
    ]
    return TextTable(
        "Gradient norms, each loss alone at weight 1",
        ("loss", "tower", "pooler", "encoder", "weight in the run"),
        rows,
        f"{gradients.num_groups} contributing groups of step {gradients.step}, {gradients.num_same} of one class. The "
        "attention loss reaches only the pooler, GRPO only the tower.",
    )


def _cosines(gradients: Gradients) -> TextTable:
    rows = [
        (" · ".join(LOSS_NAMES[loss] for loss in one.losses), *map(_signed, (one.tower, one.pooler, one.encoder)))
        for one in gradients.cosines
    ]
    return TextTable("Cosines of these gradients", ("losses", "tower", "pooler", "encoder"), rows)


def _step_cosines(found: Sequence[StepCosines]) -> TextTable:
    rows = [
        (LOSS_NAMES[one.loss], one.part, _signed(one.between_steps), _signed(one.along_text), f"{one.num_steps}")
        for one in found
    ]
    return TextTable(
        "Gradients of several recorded steps at these weights: mean cosines",
        ("loss", "at the", "of two steps", "with the true text", "steps"),
        rows,
        "Of two steps: the share of a step's squared gradient norm that is common to all steps, not noise. True text: "
        "the true answer to each pair, replayed in place of the completions that carry a gradient.",
    )


def _spread(spread: AttentionEntropy) -> TextTable:
    values = (spread.teacher, spread.pooler, spread.uniform, spread.divergence)
    return TextTable(
        "Attention on the training images of that step, nats",
        ("", "teacher", "pooler", "uniform", "KL(teacher ‖ pooler)"),
        [("entropy", *(f"{value:.2f}" for value in values))],
        f"Targets of {spread.num_completions} correct completions.",
    )


def _steps(steps: Sequence[StepFigure]) -> TextTable:
    rows = [(STEP_METRICS[one.metric], f"{one.early:.2f}", f"{one.late:.2f}", f"{one.num_steps}") for one in steps]
    return TextTable(
        "Training, pairs of one class and of two classes", ("", "first fifth", "last fifth", "steps"), rows
    )


def _with_errors(values: Sequence[float], errors: Sequence[float], form: str) -> list[str]:
    unsigned = form.removeprefix("+")
    return [
        f"{_minus(f'{100 * value:{form}}')} ± {100 * error:{unsigned}}"
        for value, error in zip(values, errors, strict=True)
    ]


def _minus(figure: str) -> str:
    """Returns the number with the Unicode minus sign, and without a sign if it is zero."""
    return figure.lstrip("+-") if float(figure) == 0 else figure.replace("-", "−")


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else _minus(f"{value:+.2f}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
