"""Rendering of a table's summary for the terminal and as Markdown, with the paper's figures beside ours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from saga_dist.retrieval.results import unfindable_remark
from saga_dist.retrieval.run_comparison import Source, interval_remark
from saga_dist.retrieval.training_text import TRAINING, training_cells
from saga_dist.sweep.records import Figure, PairedComparison, SourceTest, Summary, SummaryRow
from saga_dist.sweep.table import PublishedSetting
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.printable import printable

JSON_NAME, MARKDOWN_NAME = "table.json", "table.md"
FIGURES = ("seeds", "R@1", "95 %", "over", "R@2", "R@4", "R@8", "NMI", "remark")
"""Headings of our figures."""
PAPER = ("paper R@1", "paper NMI")
"""Headings of the published figures."""
TESTS = ("against", "points", "p", "over", "also", "remark")
"""Headings of the comparisons."""
HOW_TO_READ = (
    "Mean ± sample standard deviation over seeds. 95 %: of mean R@1, by a bootstrap over test classes or by Student's "
    "t over seeds, whichever is wider. Points and p: comparison of R@1 with each variant named, on the same queries "
    "and seeds, by a test that swaps the two within whole classes, which says nothing about other runs, and by a "
    "paired t-test over the seeds, which says nothing about other classes; the wider interval leads, the other one is "
    "under also. p is not corrected for the number of rows."
)


def write_summary(summary: Summary, out: Path) -> None:
    """Writes ``table.json`` and ``table.md`` into the directory ``out``."""
    write_atomic(out / JSON_NAME, (summary.model_dump_json(indent=2) + "\n").encode())
    write_atomic(out / MARKDOWN_NAME, markdown(summary).encode())


def markdown(summary: Summary) -> str:
    """Returns the tables of figures, comparisons and training as Markdown."""
    figures, compared = [*FIGURES, *_paper_headings(summary)], comparisons(summary)
    lines = [
        f"# {_plain(summary.title)}",
        "",
        " ".join([f"{summary.num_queries:,} queries of {summary.num_classes:,} unseen classes.", *unfindable(summary)]),
        "",
        *_markdown_table(["variant", *figures], _cells_of(summary, figures)),
        "",
        *(_markdown_table(["variant", *TESTS], compared) if compared else ()),
        *(("",) if compared else ()),
        HOW_TO_READ,
        "",
        *_markdown_table(["variant", *TRAINING], training(summary)),
        *(f"\n{_plain(line)}" for line in (*choices(summary), *sources(summary))),
    ]
    if summary.missing:
        lines += ["", "Without results:", ""]
        lines += [f"- {name}: {_plain(reason)}" for name, reason in summary.missing.items()]
    return "\n".join(lines) + "\n"


def terminal(summary: Summary) -> list[RichTable]:
    """Returns the tables of figures, comparisons and training for a terminal."""
    published = ("R@1", *PAPER)
    parts = [
        (summary.title, FIGURES, _cells_of(summary, FIGURES)),
        ("", published, _cells_of(summary, published) if _paper_headings(summary) else []),
        ("", TESTS, comparisons(summary)),
        ("", TRAINING, training(summary)),
    ]
    return [_part(title, ["variant", *headings], rows) for title, headings, rows in parts if rows]


def comparisons(summary: Summary) -> list[list[str]]:
    """Returns the cells of every comparison: label of the row, then the columns of ``TESTS``."""
    return [
        [row.label, summary.label(one.variant), *_comparison(one, summary.num_classes)]
        for row in summary.rows
        for one in row.versus
    ]


def training(summary: Summary) -> list[list[str]]:
    """Returns the facts about the training of every row: its label, then the columns of ``TRAINING``."""
    return [[row.label, *training_cells(row.training)] for row in summary.rows]


def sources(summary: Summary) -> list[str]:
    """Returns a line for each source and setting of published figures, with the rows that they stand in."""
    rows: dict[str, list[str]] = {}
    for row in summary.rows:
        if row.paper is not None:
            rows.setdefault(setting(row.paper), []).append(row.label)
    return [f"Published figures of {'; '.join(labels)}: {text}." for text, labels in rows.items()]


def unfindable(summary: Summary) -> list[str]:
    """Returns the line on queries that cannot be found; none when all can."""
    remark = unfindable_remark(summary.num_unfindable, summary.num_queries)
    return [f"{remark}."] if remark else []


def choices(summary: Summary) -> list[str]:
    """Returns a line for each tuned row: the option that was chosen for each of its seeds."""
    return [
        f"{row.label}, chosen on validation classes: "
        + "; ".join(f"{text} (seed {_listed(seeds)})" for text, seeds in _seeds_by_choice(row).items())
        + "."
        for row in summary.rows
        if row.choices
    ]


def _seeds_by_choice(row: SummaryRow) -> dict[str, list[int]]:
    seeds: dict[str, list[int]] = {}
    for seed, text in zip(row.seeds, row.choices, strict=True):
        seeds.setdefault(text, []).append(seed)
    return seeds


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def setting(paper: PublishedSetting) -> str:
    """Returns source, input size and pre-training of published figures in one line."""
    size = "input size not stated" if paper.image_size is None else f"{paper.image_size} px"
    return f"{paper.source or 'source not stated'}; {size}; {paper.pretraining or 'pre-training not stated'}"


def p_value(test: PairedComparison | SourceTest) -> str:
    """Returns the p-value of a test with three decimals, or ``< 0.001``."""
    return "< 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"


def points(share: float) -> str:
    """Returns a share as signed percentage points with one decimal; zero has a plus sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def interval(test: PairedComparison | SourceTest) -> str:
    """Returns an interval in percentage points, e.g. ``+0.9 to +4.8``."""
    return f"{points(test.low)} to {points(test.high)}"


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first column is left-aligned and whose others are right-aligned."""
    return [_line(headings), _line(["---"] + ["---:"] * (len(headings) - 1)), *map(_line, rows)]


def _part(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> RichTable:
    table = RichTable(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    first, *others = headings
    table.add_column(first)
    for heading in others:
        words = heading in ("against", "remark", "pre-training")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _paper_headings(summary: Summary) -> tuple[str, ...]:
    """Returns the headings of the paper's figures; none when no row has published figures."""
    return PAPER if any(row.paper for row in summary.rows) else ()


def _cells_of(summary: Summary, headings: Sequence[str]) -> list[list[str]]:
    """Returns label and cells of every row in the order of the headings."""
    rows = [(row.label, _figures(row, summary)) for row in summary.rows]
    return [[label, *(cells[heading] for heading in headings)] for label, cells in rows]


def _figures(row: SummaryRow, summary: Summary) -> dict[str, str]:
    """Returns the cells of a row by heading, those of ``PAPER`` included."""
    ends, paper = row.confidence_interval, row.paper
    cells = dict.fromkeys((*FIGURES, *PAPER), "")
    cells["seeds"] = str(len(row.seeds))
    if row.figures and ends:
        cells |= {f"R@{k}": _figure(row.figures[f"recall_at_{k}"], 100, 1) for k in (1, 2, 4, 8)}
        cells |= {"95 %": f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}", "NMI": _figure(row.figures["nmi"], 1, 3)}
        cells["over"] = _counted(row.interval_over, row.seeds, summary.num_classes)
        cells["remark"] = interval_remark(num_classes=summary.num_classes, num_seeds=len(row.seeds))
    if paper is not None:
        spread = "" if paper.recall_sd is None else f" ± {paper.recall_sd:.1f}"
        cells["paper R@1"] = f"{paper.recall_at_1:.1f}{spread}"
        cells["paper NMI"] = "" if paper.nmi is None else f"{paper.nmi:.2f}"
    return cells


def _comparison(one: PairedComparison, num_classes: int) -> list[str]:
    """Returns the cells of a comparison from ``points`` on."""
    over, also = _counted(one.leads, one.seeds, num_classes), ""
    if one.over_seeds is not None:
        other: Source = "classes" if one.leads == "seeds" else "seeds"
        test = one.over_seeds if other == "seeds" else one.class_test
        also = f"{interval(test)}, p {p_value(test)} ({_counted(other, one.seeds, num_classes)})"
    led = f"{points(one.difference)} ({interval(one)})"
    return [led, p_value(one), over, also, one.remark(num_classes)]


def _counted(source: Source, seeds: Sequence[int], num_classes: int) -> str:
    """Returns a source of randomness with its number of draws, e.g. ``6 seeds``."""
    return f"{len(seeds)} seeds" if source == "seeds" else f"{num_classes} classes"


def _figure(figure: Figure, scale: float, digits: int) -> str:
    spread = "" if figure.sd is None else f" ± {scale * figure.sd:.{digits}f}"
    return f"{scale * figure.mean:.{digits}f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Returns the text escaped for a Markdown table, because labels and file names in it come from the user."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")
