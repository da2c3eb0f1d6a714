"""Entries of a reference (configuration keys, metrics) as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saga_dist.cli.console import widen

WIDTH = 120
"""Columns of the output where it is not a terminal."""


def print_overview(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a title and a table with one row for each entry, its name first; names are never cut."""
    console = _console()
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def print_entry(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Prints one entry: its name, and a labelled paragraph for each fact that it has.

    Args:
        title: name of the entry.
        facts: label and text; those with an empty text are left out.
    """
    console = _console()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for label, text in facts:
        if text:
            table.add_row(Text(f"  {label}", style="dim"), Text(text))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def _console() -> Console:
    console = Console(highlight=False)
    widen(console, WIDTH)
    return console
