"""The instruments' part of the page: hostile attribute names are inert, and each chart has its figures."""

from __future__ import annotations

import shutil
from pathlib import Path

from saga_dist.diagnostics.schema import (
    EMBEDDING,
    EVIDENCE_NAME,
    MEAN,
    NOBODY,
    PRETRAINED,
    TRAINED,
    AttentionShares,
    Evidence,
    Gradients,
    LossCosine,
    LossNorms,
    ProbeChange,
    ProbeColumn,
    Probes,
    RecallFigure,
)
from saga_dist.report.build import Settings, report_page
from saga_dist.report.evidence import read_evidence, view

HOSTILE = "<img src=x onerror=window.hacked=1>\x1b[31m"


def column(encoder: str, space: str) -> ProbeColumn:
    return ProbeColumn(
        encoder=encoder, space=space, accuracy=(0.5, 0.25), error=(0.05, 0.02), mean=0.375, mean_error=0.03
    )


EVIDENCE = Evidence(
    step=3,
    num_images=12,
    num_classes=3,
    recalls=(
        RecallFigure(encoder=TRAINED, space=EMBEDDING, recall_at_1=0.5, interval=(0.4, 0.6)),
        RecallFigure(encoder=PRETRAINED, space=MEAN, recall_at_1=0.3, interval=(0.2, 0.4)),
    ),
    probes=Probes(
        attributes=(HOSTILE, "bill"),
        chance=(0.3, 0.2),
        columns=(column(TRAINED, MEAN), column(PRETRAINED, MEAN)),
        changes=(ProbeChange(space=MEAN, difference=(-0.04, 0.0), error=(0.01, 0.01), mean=-0.02, mean_error=0.01),),
    ),
    gradients=Gradients(
        step=2,
        num_groups=4,
        num_same=1,
        norms=(LossNorms(loss="dml", weight=1.0, tower=3.0, pooler=4.0, encoder=5.0),),
        cosines=(LossCosine(losses=("dml", "kl"), tower=None, pooler=-0.5, encoder=-0.25),),
    ),
    looks=(
        AttentionShares(who="pooler", encoder=TRAINED, part=0.2, bird=0.6, distractors=0.1, entropy=2.0),
        AttentionShares(who="uniform", encoder=NOBODY, part=0.1, bird=0.3, distractors=0.3, entropy=3.2),
    ),
    notes=(f"something: {HOSTILE}",),
)


def test_charts_and_figures() -> None:
    shown = view(EVIDENCE)
    assert [chart.title for chart in shown.charts] == [
        "Recall@1 by what is compared", "Where attention lies", "Attribute accuracy"
    ]  # fmt: skip
    # Two views, one of them measured before training only: one full dot and one hollow one.
    assert str(shown.charts[0].svg).count("<circle") == 2 and "hollow" in str(shown.charts[0].svg)
    assert str(shown.charts[1].svg).count("<circle") == 6
    assert str(shown.charts[2].svg).count("<circle") == 6
    rows = {row[0]: row for grid in (*shown.drawn, *shown.others) for row in grid.rows}
    assert rows["mean of X, change"] == ("mean of X, change", "−4 ± 1", "0 ± 1", "−2.0 ± 1.0")
    assert rows["metric loss"] == ("metric loss", "3", "4", "5", "1")
    assert rows["metric loss · attention"] == ("metric loss · attention", "–", "−0.50", "−0.25")


def test_hostile_names_are_text(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    EVIDENCE.save(run / EVIDENCE_NAME)
    page = report_page(run, Settings(groups=1, rows=0)).html
    assert "<img src=x" not in page.split('<section id="evidence">')[1].split("</section>")[0]
    assert "&lt;img src=x onerror=window.hacked=1&gt;" in page
    assert "\x1b" not in page


def test_a_run_that_was_not_measured(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) is None
