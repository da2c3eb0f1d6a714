"""A file with the latest report of every benchmark on one machine, and its rendering as Markdown."""

from __future__ import annotations

from pathlib import Path

from saga_dist.bench.common import Machine, Report, Size, machine
from saga_dist.config import Section
from saga_dist.config.json_files import load_json
from saga_dist.errors import ConfigError
from saga_dist.utils.atomic_io import write_atomic

HEADINGS = ("case", "ours", "other", "unit", "ratio", "bar", "met")
"""Headings of the Markdown table."""


class BenchRecord(Section):
    """One measured benchmark."""

    size: Size
    """Amount of work."""
    load: float
    """Mean number of runnable processes on the machine in the minute before the benchmark."""
    report: Report
    """Result."""


class BenchRecords(Section):
    """Content of the file of ``saga-dist bench --json``: one machine, and the latest report of each benchmark."""

    machine: Machine
    """Machine on which all benchmarks ran."""
    benches: dict[str, BenchRecord]
    """Benchmarks by name."""


def load_records(path: Path) -> BenchRecords:
    """Returns the content of a file of ``saga-dist bench --json``.

    Raises:
        DataError: the file cannot be read or has another content.
    """
    return load_json(path, BenchRecords, what="figures of benches", fix="name another --json")


def records_of_this_machine(path: Path | None) -> BenchRecords:
    """Returns the content of the file; an empty record of this machine when there is no file.

    Raises:
        ConfigError: the file has results of another machine.
        DataError: the file cannot be read or has another content.
    """
    here = machine()
    if path is None or not path.exists():
        return BenchRecords(machine=here, benches={})
    found = load_records(path)
    if found.machine != here:
        raise ConfigError(
            f"figures of another machine ({found.machine.device}, {found.machine.processor}, torch "
            f"{found.machine.torch})",
            where=str(path),
            expected="this machine's, or no file",
            fix="name another --json",
        )
    return found


def with_bench(figures: BenchRecords, measured: BenchRecord) -> BenchRecords:
    """Returns a copy of ``figures`` with this benchmark added, in place of an older one of the same name."""
    return BenchRecords(machine=figures.machine, benches={**figures.benches, measured.report.bench: measured})


def save(figures: BenchRecords, path: Path) -> None:
    """Writes the records to a file atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, (figures.model_dump_json(indent=1) + "\n").encode(), option="--json")


def markdown(measured: BenchRecord) -> str:
    """Returns a benchmark as Markdown: its table, then its notes."""
    report = measured.report
    lines = [
        f"**{report.bench}** against {report.alternative}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
        *(
            f"| {row.case} | {number(row.ours)} | {number(row.other)} | {row.unit} | {number(row.ratio)} | "
            f"{number(row.bar)} | {verdict(row.met)} |"
            for row in report.rows
        ),
        "",
        *(f"{note}." for note in (*report.notes, f"size {measured.size.value}, load {measured.load:g}")),
    ]
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """Returns a number with three significant digits, or as a whole number from 100 on; empty for None."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def verdict(met: bool | None) -> str:
    """Returns ``yes`` or ``NO``; empty for None, that is, for a row without a target."""
    return "" if met is None else ("yes" if met else "NO")
