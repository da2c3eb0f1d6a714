"""The instruments' part of the page: what ``saga-dist evidence show`` wrote, drawn and tabulated."""

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
from saga_dist.diagnostics.tables import TextTable, grids
from saga_dist.report.curves import Chart
from saga_dist.report.dot_chart import Dot, DotSeries, dot_chart
from saga_dist.report.text import shown, shown_name

NOT_MEASURED = "Not measured yet: saga-dist evidence show RUN."
_BOTH = (TRAINED, PRETRAINED)


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """What the template shows."""

    step: int
    num_images: int
    num_classes: int
    charts: list[Chart]
    drawn: list[TextTable]
    """The figures of the charts."""
    others: list[TextTable]
    notes: list[str]
    """Why an instrument is missing."""


def read_evidence(run: Path) -> EvidenceView | None:
    """Returns the evidence of a run; None where it was not measured.

    Raises:
        DataError: the file is damaged.
    """
    path = run / EVIDENCE_NAME
    return view(Evidence.load(path)) if path.exists() else None


def view(evidence: Evidence) -> EvidenceView:
    """Returns charts and tables of the figures."""
    charts = [_recalls(evidence.recalls)]
    if evidence.looks:
        charts.append(_looks(evidence.looks))
    if evidence.probes is not None:
        charts.append(_probes(evidence.probes))
    found = [_shown(grid) for grid in grids(evidence)]
    return EvidenceView(
        step=evidence.step,
        num_images=evidence.num_images,
        num_classes=evidence.num_classes,
        charts=charts,
        drawn=[grid for grid in found if grid.drawn],
        others=[grid for grid in found if not grid.drawn],
        notes=[shown(note) for note in evidence.notes],
    )


def _recalls(recalls: Sequence[RecallFigure]) -> Chart:
    spaces = list(dict.fromkeys(one.space for one in recalls))
    found = {(one.encoder, one.space): Dot(one.recall_at_1, *one.interval) for one in recalls}
    series = [
        DotSeries(encoder, 0, [found.get((encoder, space)) for space in spaces], hollow=encoder == PRETRAINED)
        for encoder in _BOTH
    ]
    return dot_chart("Recall@1 by what is compared", spaces, series)


def _probes(probes: Probes) -> Chart:
    spaces = list(dict.fromkeys(column.space for column in probes.columns))
    columns = sorted(probes.columns, key=lambda column: (spaces.index(column.space), column.encoder == PRETRAINED))
    chance = [*probes.chance, sum(probes.chance) / len(probes.chance)]
    return dot_chart(
        "Attributes told right",
        [*probes.attributes, "mean"],
        [
            DotSeries(column.space, spaces.index(column.space), _dots(column), hollow=column.encoder == PRETRAINED)
            for column in columns
        ],
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
    return dot_chart("Where attention lies", rows, series)


def _shown(grid: TextTable) -> TextTable:
    """The table with everything printable: attribute names are anyone's."""
    return replace(
        grid,
        headings=tuple(map(shown_name, grid.headings)),
        rows=[tuple(map(shown_name, row)) for row in grid.rows],
    )
