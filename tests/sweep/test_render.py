"""What is written of a summary: intervals and their source, remarks, training, and sources of published figures."""

from __future__ import annotations

import io

from rich.console import Console

from saga_dist.retrieval.results import TrainingFacts
from saga_dist.sweep.records import PairedComparison, SourceTest, Summary, SummaryRow
from saga_dist.sweep.render import markdown, sources, terminal, unfindable
from saga_dist.sweep.summary import FIGURES, over_seeds
from saga_dist.sweep.table import PublishedFigures

FACTS = TrainingFacts(
    metric_loss="infonce", optimizer_steps=60, images_seen=3840, image_height=80, image_width=80, pretraining="standin"
)
PAPER = PublishedFigures(recall_at_1=81.6, source="The paper", image_size=224, pretraining="An MLLM")
OTHER = PublishedFigures(recall_at_1=90.1, source="Another work")


def row(name: str, values: tuple[float, ...], *versus: PairedComparison, paper: PublishedFigures | None) -> SummaryRow:
    return SummaryRow(
        name=name,
        label=f"row {name}",
        seeds=tuple(range(len(values))),
        figures={key: over_seeds(values) for key in FIGURES} if values else {},
        confidence_interval=(0.2, 0.4) if values else None,
        class_interval=(0.25, 0.35) if values else None,
        seed_interval=(0.2, 0.4) if len(values) > 1 else None,
        paper=paper,
        versus=versus,
        training=(FACTS,) if values else (),
    )


SUMMARY = Summary(
    title="A table",
    num_queries=80,
    num_classes=50,
    rows=(
        row("a", (0.28, 0.3, 0.32), paper=PAPER),
        row(
            "b",
            (0.3, 0.32, 0.34),
            PairedComparison(
                variant="a", seeds=(0, 1, 2), difference=0.02, low=-0.01, high=0.05, p_value=0.08, leads="seeds",
                over_classes=SourceTest(low=0.01, high=0.03, p_value=0.0004),
                over_seeds=SourceTest(low=-0.01, high=0.05, p_value=0.08),
            ),
            paper=PAPER,
        ),
        row("c", (0.3, 0.3), paper=None),
        row("d", (), paper=OTHER),
    ),
)  # fmt: skip


def test_both_intervals_are_shown_and_the_wider_leads() -> None:
    lines = markdown(SUMMARY).splitlines()
    assert (
        "| row b | row a | +2.0 (-1.0 to +5.0) | 0.080 | 3 seeds | +1.0 to +3.0, p &lt; 0.001 (50 classes) |  |"
        in lines
    )
    first = next(line for line in lines if line.startswith("| row a | 3 |"))
    assert first.split(" | ")[3:5] == ["20.0–40.0", "3 seeds"]
    few = next(line for line in lines if line.startswith("| row c | 2 |"))
    assert (few.split(" | ")[4], few.split(" | ")[9]) == ("2 seeds", "only 2 seeds")


def test_rows_say_how_they_were_trained() -> None:
    text = markdown(SUMMARY)
    assert "| variant | metric loss | images seen | steps | px | pre-training |" in text
    assert "| row a | infonce | 3,840 | 60 | 80 | standin |" in text
    assert "| row d | – | – | – | – | – |" in text
    file = io.StringIO()
    for part in terminal(SUMMARY):
        Console(file=file, width=160).print(part)
    for word in ("infonce", "3,840", "standin", "3 seeds", "+1.0 to +3.0, p < 0.001 (50 classes)"):
        assert word in file.getvalue()


def test_published_figures_have_their_source_and_setting() -> None:
    expected = [
        "Published figures of row a; row b: The paper; 224 px; An MLLM.",
        "Published figures of row d: Another work; input size not stated; pre-training not stated.",
    ]
    assert sources(SUMMARY) == expected
    assert all(line in markdown(SUMMARY) for line in expected)
    assert "| row d | 0 |  |  |  |  |  |  |  |  | 90.1 |  |" in markdown(SUMMARY)


def test_a_table_without_comparisons_has_no_empty_one() -> None:
    alone = SUMMARY.model_copy(update={"rows": SUMMARY.rows[:1]})
    assert "against" not in markdown(alone)
    assert len(terminal(alone)) == len(terminal(SUMMARY)) - 1


def test_queries_that_cannot_be_found_are_remarked_on() -> None:
    assert unfindable(SUMMARY) == []
    lost = SUMMARY.model_copy(update={"num_unfindable": 3})
    remark = "3 of 80 queries cannot be found and count as misses: their class has no other image."
    assert unfindable(lost) == [remark]
    assert f"80 queries of 50 unseen classes. {remark}" in markdown(lost).splitlines()
