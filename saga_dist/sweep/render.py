"""Rendering of a table's summary for the terminal and as Markdown, with the paper's figures beside ours."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from saga_dist.sweep.summary import Figure, PairedComparison, Summary, SummaryRow
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.printable import printable

JSON_NAME, MARKDOWN_NAME = "table.json", "table.md"
FIGURES = ("seeds", "R@1", "95 %", "R@2", "R@4", "R@8", "NMI")
"""Headings of our figures."""
PAPER = ("paper R@1", "paper NMI")
"""Headings of the published figures."""
TEST = ("against", "points", "p")
"""Headings of the paired tests."""
HOW_TO_READ = (
    "Mean ± sample standard deviation over seeds. 95 %: of mean R@1, by a bootstrap over test classes. Points and p: a "
    "paired test of R@1 against each variant named, on the same queries and seeds, swapping the two within whole "
    "classes; it generalises to other classes, not to other seeds, and p is not corrected for the number of rows."
)


def write_summary(summary: Summary, out: Path) -> None:
    """Writes ``table.json`` and ``table.md`` into the directory ``out``."""
    write_atomic(out / JSON_NAME, (summary.model_dump_json(indent=2) + "\n").encode())
    write_atomic(out / MARKDOWN_NAME, markdown(summary).encode())


def markdown(summary: Summary) -> str:
    """Returns the table as Markdown."""
    headings = _headings(summary)
    lines = [
        f"# {_plain(summary.title)}",
        "",
        f"{summary.num_queries:,} queries of {summary.num_classes:,} unseen classes.",
        "",
        _line(["variant", *headings]),
        _line(["---"] + ["---:"] * len(headings)),
        *(_line([row.label, *(_cells(row, summary)[name] for name in headings)]) for row in summary.rows),
        "",
        HOW_TO_READ,
    ]
    if summary.missing:
        lines += [
            "",
            "Without results:",
            "",
            *(f"- {name}: {_plain(reason)}" for name, reason in summary.missing.items()),
        ]
    return "\n".join(lines) + "\n"


def terminal(summary: Summary) -> list[RichTable]:
    """Returns the table for a terminal in two parts: our figures; Recall@1 with the paper's figures and the tests."""
    rest = [name for name in _headings(summary) if name not in FIGURES]
    return [_part(summary, summary.title, FIGURES), _part(summary, "", ("R@1", *rest))]


def _part(summary: Summary, title: str, headings: Sequence[str]) -> RichTable:
    table = RichTable(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("variant")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=heading != "against")
    for row in summary.rows:
        table.add_row(Text(printable(row.label)), *(Text(printable(_cells(row, summary)[name])) for name in headings))
    return table


def _headings(summary: Summary) -> list[str]:
    """Returns the headings of the table; the paper's only when a row has published figures."""
    printed = any(row.paper for row in summary.rows)
    return [*FIGURES, *(PAPER if printed else ()), *TEST]


def _cells(row: SummaryRow, summary: Summary) -> dict[str, str]:
    interval, paper, versus = row.confidence_interval, row.paper, row.versus
    cells = dict.fromkeys((*FIGURES, *PAPER, *TEST), "")
    cells["seeds"] = str(len(row.seeds))
    if row.figures and interval:
        cells |= {f"R@{k}": _figure(row.figures[f"recall_at_{k}"], 100, 1) for k in (1, 2, 4, 8)}
        cells |= {"95 %": f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}", "NMI": _figure(row.figures["nmi"], 1, 3)}
    if paper is not None:
        spread = "" if paper.recall_sd is None else f" ± {paper.recall_sd:.1f}"
        cells["paper R@1"] = f"{paper.recall_at_1:.1f}{spread}"
        cells["paper NMI"] = "" if paper.nmi is None else f"{paper.nmi:.2f}"
    cells["against"] = "; ".join(summary.label(one.variant) for one in versus)
    cells["points"] = "; ".join(f"{points(one.difference)} ({points(one.low)} to {points(one.high)})" for one in versus)
    cells["p"] = "; ".join(map(p_value, versus))
    return cells


def p_value(versus: PairedComparison) -> str:
    """Returns the p-value of a test with three decimals, or ``< 0.001``."""
    return "< 0.001" if versus.p_value < 0.001 else f"{versus.p_value:.3f}"


def points(share: float) -> str:
    """Returns a share as signed percentage points with one decimal; zero has a plus sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _figure(figure: Figure, scale: float, digits: int) -> str:
    spread = "" if figure.sd is None else f" ± {scale * figure.sd:.{digits}f}"
    return f"{scale * figure.mean:.{digits}f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Returns the text escaped for a Markdown table, because labels and file names in it come from the user."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")
