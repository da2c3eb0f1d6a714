"""Prints a result below the published rows of a table, and compares each published Recall@1 with its interval."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from saga_dist.retrieval.results import SplitResult
from saga_dist.sweep.table import PublishedFigures, Table


def published_table(table: Table, result: SplitResult, *, name: str) -> RichTable:
    """Returns a table of the published rows, with the given result and its 95 % interval in the last row.

    The last column says whether the published Recall@1 lies below, within or above the interval. The interval is over
    classes, for one run, so this is no test between two methods (``sweep`` has one).

    Args:
        table: table of the paper; rows without published figures are left out.
        result: result on the split that the table is about.
        name: label of the last row.
    """
    shown = RichTable(
        title=f"\n{table.title}: published, and this one",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("")
    for heading in ("R@1", "95 %", "NMI", "is"):
        shown.add_column(heading, justify="right", no_wrap=True)
    low, high = (100 * end for end in result.confidence_interval)
    for variant in table.variant:
        if variant.paper is not None:
            shown.add_row(Text(variant.label), *_cells(variant.paper, low, high))
    own = (f"{100 * result.recall_at_1:.1f}", f"{low:.1f}–{high:.1f}", f"{result.nmi:.3f}", "")
    shown.add_row(Text(name, style="bold"), *own)
    return shown


def _cells(paper: PublishedFigures, low: float, high: float) -> tuple[str, str, str, str]:
    """Returns the cells of a published row; low and high are the ends of the interval, in percent."""
    spread = "" if paper.recall_sd is None else f" ± {paper.recall_sd:.1f}"
    recall = paper.recall_at_1
    where = "below" if recall < low else "above" if recall > high else "within"
    nmi = "" if paper.nmi is None else f"{paper.nmi:.2f}"
    return f"{recall:.1f}{spread}", "", nmi, where
