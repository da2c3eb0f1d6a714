"""A table for people: in the terminal and as Markdown, the paper's figures beside ours."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from saga_dist.files import write_atomic
from saga_dist.sweep.summary import Figure, Row, Summary

JSON_NAME, MARKDOWN_NAME = "table.json", "table.md"
HEADINGS = ("variant", "seeds", "R@1", "95 %", "R@2", "R@4", "R@8", "NMI", "paper R@1", "NMI", "against", "points", "p")
HOW_TO_READ = (
    "Mean ± sample standard deviation over seeds. 95 %: of mean R@1, by a bootstrap over test classes. Points and p: a "
    "paired test of R@1 against the variant named, on the same queries and seeds, swapping the two within whole "
    "classes; it speaks of other classes, not of other seeds, and p is not corrected for the number of rows."
)


def write_summary(summary: Summary, out: Path) -> None:
    """Writes ``table.json`` and ``table.md``."""
    write_atomic(out / JSON_NAME, (summary.model_dump_json(indent=2) + "\n").encode())
    write_atomic(out / MARKDOWN_NAME, markdown(summary).encode())


def markdown(summary: Summary) -> str:
    """Returns the table as Markdown."""
    lines = [
        f"# {summary.title}",
        "",
        f"{summary.num_queries:,} queries of {summary.num_classes:,} unseen classes.",
        "",
        _line(HEADINGS),
        _line(["---"] + ["---:"] * (len(HEADINGS) - 1)),
        *(_line([cell.replace("|", "\\|") for cell in _cells(row, summary)]) for row in summary.rows),
        "",
        HOW_TO_READ,
    ]
    if summary.missing:
        lines += ["", "Without results:", "", *(f"- {name}: {reason}" for name, reason in summary.missing.items())]
    return "\n".join(lines) + "\n"


def terminal(summary: Summary) -> RichTable:
    """Returns the table for a terminal."""
    table = RichTable(title=summary.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
    for row in summary.rows:
        table.add_row(*_cells(row, summary))
    return table


def _cells(row: Row, summary: Summary) -> list[str]:
    interval, paper, versus = row.confidence_interval, row.paper, row.versus
    recalls = [_figure(row.figures.get(f"recall_at_{k}"), 100, 1) for k in (1, 2, 4, 8)]
    cells = [
        row.label,
        str(len(row.seeds)),
        recalls[0],
        f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}" if interval else "",
        *recalls[1:],
        _figure(row.figures.get("nmi"), 1, 3),
        "" if paper is None else f"{paper.recall_at_1:.1f}" + (f" ± {paper.recall_sd:.1f}" if paper.recall_sd else ""),
        "" if paper is None or paper.nmi is None else f"{paper.nmi:.2f}",
    ]
    if versus is None:
        return [*cells, "", "", ""]
    points = f"{100 * versus.difference:+.1f} ({100 * versus.low:+.1f} to {100 * versus.high:+.1f})"
    p_value = "< 0.001" if versus.p_value < 0.001 else f"{versus.p_value:.3f}"
    return [*cells, summary.label(versus.variant), points, p_value]


def _figure(figure: Figure | None, scale: float, digits: int) -> str:
    if figure is None:
        return ""
    spread = "" if figure.sd is None else f" ± {scale * figure.sd:.{digits}f}"
    return f"{scale * figure.mean:.{digits}f}{spread}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
