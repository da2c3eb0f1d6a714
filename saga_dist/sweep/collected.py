"""Tables of several sweeps in one file, and as one Markdown table side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saga_dist.config import Section
from saga_dist.config.json_files import load_json
from saga_dist.errors import DataError
from saga_dist.sweep.render import JSON_NAME, p_value, points
from saga_dist.sweep.summary import Summary, SummaryRow


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
        tables[name] = load_json(directory / JSON_NAME, Summary, what="a table", fix=fix)
    return Collected(tables=tables)


def load_collected(path: Path) -> Collected:
    """Returns the tables in a file of ``saga-dist evidence collect``.

    Raises:
        DataError: the file cannot be read or has another content.
    """
    return load_json(path, Collected, what="a file of tables", fix="saga-dist evidence collect writes it")


def keep_longer_rows(older: Collected, newer: Collected) -> Collected:
    """Returns the tables of both; a row that both have is taken from the one with more runs, or else from the newer.

    So several machines can add runs to a table, and rows remain when the directories of their runs are deleted. A row
    keeps its own tests, which are paired over the runs that were available together.

    Args:
        older: earlier collection.
        newer: later collection.

    Raises:
        DataError: a table has other queries or other rows in one collection than in the other.
    """
    tables = dict(older.tables)
    for name, table in newer.tables.items():
        tables[name] = _longer_rows(name, tables[name], table) if name in tables else table
    return Collected(tables=tables)


def _longer_rows(name: str, older: Summary, newer: Summary) -> Summary:
    shapes = [(one.num_queries, one.num_classes, [row.name for row in one.rows]) for one in (older, newer)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"table {name} has other queries or rows than before",
            where="--keep",
            expected="the same test of the same rows",
            fix="leave it out, or name the new directory otherwise",
        )
    pairs = zip(older.rows, newer.rows, strict=True)
    rows = tuple(old if len(old.seeds) > len(new.seeds) else new for old, new in pairs)
    done = {f"{row.name}/seed_{seed}" for row in rows for seed in row.seeds}
    missing = {cell: why for cell, why in (older.missing | newer.missing).items() if cell not in done}
    return newer.model_copy(update={"rows": rows, "missing": missing})


def side_by_side(collected: Collected) -> str:
    """Returns Markdown with a line per variant and a column per table: Recall@1 in percent, gain and p in brackets."""
    labels = dict.fromkeys(row.label for table in collected.tables.values() for row in table.rows)
    lines = ["| | " + " | ".join(f"`{name}`" for name in collected.tables) + " |"]
    lines.append("|---" + "|---:" * len(collected.tables) + "|")
    for label in labels:
        rows = [{row.label: row for row in table.rows}.get(label) for table in collected.tables.values()]
        lines.append(f"| {label} | " + " | ".join(map(cell, rows)) + " |")
    return "\n".join(lines) + "\n"


def cell(row: SummaryRow | None) -> str:
    """Returns the text of a cell, e.g. ``37.9 ± 0.4 (+4.1, p < 0.001)``, or ``–`` for a row without results.

    The numbers are mean and standard deviation over seeds of Recall@1 in percent, and the gain as ``gain`` writes it.
    """
    if row is None or not row.figures:
        return "–"
    recall = row.figures["recall_at_1"]
    spread = "" if recall.sd is None else f" ± {100 * recall.sd:.1f}"
    return f"{100 * recall.mean:.1f}{spread}{gain(row)}"


def gain(row: SummaryRow) -> str:
    """Returns gains over the opponents in percentage points with p-values, e.g. `` (+4.1, p < 0.001)``.

    Opponents are separated by semicolons; the text is empty for a row without opponents.
    """
    tests = [f"{points(one.difference)}, p {p_value(one)}" for one in row.versus]
    return f" ({'; '.join(tests)})" if tests else ""
