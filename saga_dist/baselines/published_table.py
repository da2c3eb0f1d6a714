"""Prints a result below the published rows of a table, and compares each published Recall@1 with its interval."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from saga_dist.retrieval.results import SplitResult, TrainingFacts
from saga_dist.retrieval.run_comparison import interval_remark
from saga_dist.retrieval.training_text import TRAINING, training_cells
from saga_dist.sweep.table import PublishedFigures, Table
from saga_dist.utils.printable import printable

FIGURES = ("R@1", "95 %", "NMI", "is")
"""Headings of the figures."""


def published_table(
    table: Table, result: SplitResult, *, name: str, training: TrainingFacts | None = None
) -> RichTable:
    """Returns a table of the published rows, with the given result and its 95 % interval in the last row.

    The column "is" says whether the published Recall@1 lies below, within or above the interval. The interval is over
    classes, for one run, so this is no test between two methods (``sweep`` has one). The columns of training have what
    is known of each row, because rows with other images, steps, input size or pre-training cannot be compared.

    Args:
        table: table of the paper; rows without published figures are left out.
        result: result on the split that the table is about.
        name: label of the last row.
        training: facts about the training of the last row; None where they are not known.
    """
    shown = RichTable(
        title=f"\n{table.title}: published, and this one",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("")
    for heading in (*TRAINING, *FIGURES):
        shown.add_column(heading, justify="right", no_wrap=heading in FIGURES, overflow="fold")
    low, high = (100 * end for end in result.confidence_interval)
    for variant in table.variant:
        paper = table.published(variant)
        if paper is not None:
            shown.add_row(Text(printable(variant.label)), *_training(_published(paper)), *_cells(paper, low, high))
    own = (f"{100 * result.recall_at_1:.1f}", f"{low:.1f}–{high:.1f}", f"{result.nmi:.3f}", "")
    shown.add_row(Text(printable(name), style="bold"), *_training(training), *own)
    return shown


def notes(table: Table, result: SplitResult, *, num_runs: int) -> list[str]:
    """Returns the lines below the table: what the interval covers, and the sources of the published rows.

    Args:
        table: table of the paper.
        result: result in the last row.
        num_runs: 1 for the encoder of a run, 0 for one that was not trained here.
    """
    remark = interval_remark(num_classes=result.num_classes, num_seeds=num_runs)
    papers = filter(None, map(table.published, table.variant))
    sources = dict.fromkeys(paper.source for paper in papers if paper.source)
    return [
        "95 %: over test classes" + (f"; {remark}" if remark else ""),
        *(printable(f"published: {source}") for source in sources),
    ]


def _published(paper: PublishedFigures) -> TrainingFacts:
    side = paper.image_size
    return TrainingFacts(image_height=side, image_width=side, pretraining=paper.pretraining)


def _training(facts: TrainingFacts | None) -> list[Text]:
    return [Text(printable(cell)) for cell in training_cells([] if facts is None else [facts])]


def _cells(paper: PublishedFigures, low: float, high: float) -> tuple[str, str, str, str]:
    """Returns the cells of a published row; low and high are the ends of the interval, in percent."""
    spread = "" if paper.recall_sd is None else f" ± {paper.recall_sd:.1f}"
    recall = paper.recall_at_1
    where = "below" if recall < low else "above" if recall > high else "within"
    nmi = "" if paper.nmi is None else f"{paper.nmi:.2f}"
    return f"{recall:.1f}{spread}", "", nmi, where
