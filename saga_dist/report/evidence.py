"""The evidence section of the report: charts and tables of the results that ``saga-dist evidence show`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saga_dist.diagnostics.schema import (
    EVIDENCE_NAME,
    NOBODY,
    PRETRAINED,
    TRAINED,
    AttentionShares,
    Evidence,
    ProbeColumn,
    Probes,
    RecallFigure,
)
from saga_dist.diagnostics.tables import TextTable, evidence_tables
from saga_dist.report.dot_chart import Dot, DotSeries, dot_chart
from saga_dist.report.line_chart import Chart
from saga_dist.report.text import shown, shown_name

NOT_MEASURED = "Not measured yet: saga-dist evidence show RUN."
_BOTH = (TRAINED, PRETRAINED)


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """Data of the evidence section, for the template."""

    step: int
    """Optimizer steps of the measured weights."""
    num_images: int
    """Number of unseen images measured."""
    num_classes: int
    """Number of their classes."""
    charts: list[Chart]
    """Recall@1, and attention shares and attribute accuracy when measured."""
    drawn: list[TextTable]
    """Tables with the numbers of the charts."""
    others: list[TextTable]
    """Tables without a chart."""
    notes: list[str]
    """One line for each result that is missing, with the reason."""


def read_evidence(run: Path) -> EvidenceView | None:
    """Returns the evidence section of a run; None when the run has no ``evidence.json``.

    Args:
        run: run directory.

    Raises:
        DataError: the file is damaged.
    """
    path = run / EVIDENCE_NAME
    return view(Evidence.load(path)) if path.exists() else None


def view(evidence: Evidence) -> EvidenceView:
    """Returns the charts and tables of the results."""
    charts = [_recalls(evidence.recalls)]
    if evidence.looks:
        charts.append(_looks(evidence.looks))
    if evidence.probes is not None:
        charts.append(_probes(evidence.probes))
    tables = [_printable(table) for table in evidence_tables(evidence)]
    return EvidenceView(
        step=evidence.step,
        num_images=evidence.num_images,
        num_classes=evidence.num_classes,
        charts=charts,
        drawn=[table for table in tables if table.drawn],
        others=[table for table in tables if not table.drawn],
        notes=[shown(note) for note in evidence.notes],
    )


def _recalls(recalls: Sequence[RecallFigure]) -> Chart:
    spaces = list(dict.fromkeys(one.space for one in recalls))
    found = {(one.encoder, one.space): Dot(one.recall_at_1, *one.interval) for one in recalls}
    series = [
        DotSeries(encoder, 0, [found.get((encoder, space)) for space in spaces], hollow=encoder == PRETRAINED)
        for encoder in _BOTH
    ]
    return dot_chart("Recall@1 by what is compared", spaces, series, quantity="Recall@1")


def _probes(probes: Probes) -> Chart:
    spaces = list(dict.fromkeys(column.space for column in probes.columns))
    columns = sorted(probes.columns, key=lambda column: (spaces.index(column.space), column.encoder == PRETRAINED))
    chance = [*probes.chance, sum(probes.chance) / len(probes.chance)]
    return dot_chart(
        "Attribute accuracy",
        [*probes.attributes, "mean"],
        [
            DotSeries(column.space, spaces.index(column.space), _dots(column), hollow=column.encoder == PRETRAINED)
            for column in columns
        ],
        quantity="accuracy",
        marks=chance,
    )


def _dots(column: ProbeColumn) -> list[Dot]:
    values, errors = (*column.accuracy, column.mean), (*column.error, column.mean_error)
    return [Dot.with_error(value, error) for value, error in zip(values, errors, strict=True)]


def _looks(looks: Sequence[AttentionShares]) -> Chart:
    rows = list(dict.fromkeys(one.who for one in looks))
    found = {(one.who, one.encoder): one for one in looks}
    series = []
    for colour, (label, share_of) in enumerate(
        (("part", lambda one: one.part), ("bird", lambda one: one.bird), ("flowers", lambda one: one.distractors))
    ):
        for encoder in _BOTH:
            dots = []
            for who in rows:
                one = found.get((who, encoder)) or (found.get((who, NOBODY)) if encoder == TRAINED else None)
                dots.append(None if one is None else Dot(share_of(one), share_of(one), share_of(one)))
            series.append(DotSeries(label, colour, dots, hollow=encoder == PRETRAINED))
    return dot_chart("Where attention lies", rows, series, quantity="share of the attention")


def _printable(table: TextTable) -> TextTable:
    """Returns the table with control characters escaped; attribute names come from the data and are not trusted."""
    return replace(
        table,
        headings=tuple(map(shown_name, table.headings)),
        rows=[tuple(map(shown_name, row)) for row in table.rows],
    )
