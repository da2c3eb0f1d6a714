"""Tables of several sweeps in one file, and as one Markdown table side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saga_dist.config import Section
from saga_dist.config.json_files import load_json
from saga_dist.errors import DataError
from saga_dist.retrieval.training_text import TRAINING
from saga_dist.sweep.records import Summary, SummaryRow
from saga_dist.sweep.render import JSON_NAME, TESTS, comparisons, p_value, points, training
from saga_dist.sweep.summary import with_seed_tests


class Collected(Section):
    """Content of the file that ``saga-dist evidence collect`` writes."""

    tables: dict[str, Summary]
    """Tables by the names of their directories."""

    @property
    def num_runs(self) -> int:
        """Number of runs in all tables."""
        return sum(len(row.seeds) for table in self.tables.values() for row in table.rows)


def collect(directories: Sequence[Path]) -> Collected:
    """Returns the tables of several sweeps.

    Args:
        directories: output directories of ``saga-dist sweep``.

    Raises:
        DataError: a directory has no table, or two directories have the same name.
    """
    tables: dict[str, Summary] = {}
    for directory in directories:
        name = directory.resolve().name
        if name in tables:
            raise DataError(f"two tables are called {name}", where=str(directory), fix="rename one of the directories")
        fix = "saga-dist sweep TABLE.toml --out DIRECTORY writes it"
        tables[name] = with_seed_tests(load_json(directory / JSON_NAME, Summary, what="a table", fix=fix))
    return Collected(tables=tables)


def load_collected(path: Path) -> Collected:
    """Returns the tables in a file of ``saga-dist evidence collect``, with intervals over seeds also of an older file.

    Raises:
        DataError: the file cannot be read or has another content.
    """
    found = load_json(path, Collected, what="a file of tables", fix="saga-dist evidence collect writes it")
    return Collected(tables={name: with_seed_tests(table) for name, table in found.tables.items()})


def keep_longer_rows(older: Collected, newer: Collected) -> Collected:
    """Returns the tables of both; a row that both have is taken from the one with more runs, or else from the newer.

    The newer collection of a table may have further rows.

    So several machines can add runs to a table, and rows remain when the directories of their runs are deleted. A row
    keeps its own tests, which are paired over the runs that were available together.

    Args:
        older: earlier collection.
        newer: later collection.

    Raises:
        DataError: a table has other queries than before, or lacks a row that it had.
    """
    tables = dict(older.tables)
    for name, table in newer.tables.items():
        tables[name] = _longer_rows(name, tables[name], table) if name in tables else table
    return Collected(tables=tables)


def _longer_rows(name: str, older: Summary, newer: Summary) -> Summary:
    before = {row.name: row for row in older.rows}
    queries = [(one.num_queries, one.num_classes) for one in (older, newer)]
    if queries[0] != queries[1] or before.keys() - {row.name for row in newer.rows}:
        raise DataError(
            f"table {name} has other queries or rows than before",
            where="--keep",
            expected="the same test of the same rows",
            fix="leave it out, or name the new directory otherwise",
        )
    rows = tuple(
        before[row.name] if row.name in before and len(before[row.name].seeds) > len(row.seeds) else row
        for row in newer.rows
    )
    done = {f"{row.name}/seed_{seed}" for row in rows for seed in row.seeds}
    missing = {cell: why for cell, why in (older.missing | newer.missing).items() if cell not in done}
    return newer.model_copy(update={"rows": rows, "missing": missing})


def side_by_side(collected: Collected) -> str:
    """Returns Markdown with a line per variant and a column per table: Recall@1 in percent, gain and p in brackets."""
    labels = dict.fromkeys(row.label for table in collected.tables.values() for row in table.rows)
    lines = []
    for label in labels:
        rows = [({row.label: row for row in table.rows}.get(label), table) for table in collected.tables.values()]
        lines.append([label, *(cell(row, table.num_classes) for row, table in rows)])
    return _markdown(["", *(f"`{name}`" for name in collected.tables)], lines, right_from=1)


def all_comparisons(collected: Collected) -> str:
    """Returns Markdown with a line for every comparison of every table, with both intervals."""
    lines = [[f"`{name}`", *line] for name, table in collected.tables.items() for line in comparisons(table)]
    return _markdown(["table", "variant", *TESTS], lines, right_from=3)


def all_training(collected: Collected) -> str:
    """Returns Markdown with a line for the training facts of every row with results; equal rows share a line."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, table in collected.tables.items():
        for row, (label, *facts) in zip(table.rows, training(table), strict=True):
            if row.figures:
                rows.setdefault((f"`{name}`", *facts), []).append(label)
    lines = [[table, "; ".join(labels), *facts] for (table, *facts), labels in rows.items()]
    return _markdown(["table", "variants", *TRAINING], lines, right_from=3)


def cell(row: SummaryRow | None, num_classes: int) -> str:
    """Returns the text of a cell, e.g. ``37.9 ± 0.4 (+4.1, p < 0.001)``, or ``–`` for a row without results.

    The numbers are mean and standard deviation over seeds of Recall@1 in percent, and the gain as ``gain`` writes it.
    """
    if row is None or not row.figures:
        return "–"
    recall = row.figures["recall_at_1"]
    spread = "" if recall.sd is None else f" ± {100 * recall.sd:.1f}"
    gained = gain(row, num_classes)
    return f"{100 * recall.mean:.1f}{spread}" + (f" ({gained})" if gained else "")


def gain(row: SummaryRow, num_classes: int) -> str:
    """Returns gains over the opponents in percentage points with p-values, e.g. ``+4.1, p < 0.001``.

    The p-value is that of the test with the wider interval. Opponents are separated by semicolons; few seeds or classes
    are named, as in ``+2.0, p 0.369, only 2 seeds``. The text is empty for a row without opponents.
    """
    tests = [
        ", ".join(filter(None, (points(one.difference), f"p {p_value(one)}", _few(one.remark(num_classes)))))
        for one in row.versus
    ]
    return "; ".join(tests)


def _few(remark: str) -> str:
    """Returns a remark without its explanations: ``one run: says nothing about other runs`` is ``one run``."""
    return ", ".join(part.partition(":")[0] for part in remark.split("; "))


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right_from: int) -> str:
    """Returns a Markdown table whose columns are right-aligned from an index on; the cells are not escaped."""
    lines = [f"| {' | '.join(headings)} |", "|---" * right_from + "|---:" * (len(headings) - right_from) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines).replace("|  |", "| |") + "\n"
