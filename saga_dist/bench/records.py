"""A file of figures: the latest report of every bench on one machine, and how it reads in a README."""

from __future__ import annotations

from pathlib import Path

from saga_dist.bench.common import Machine, Report, Size, machine
from saga_dist.config import Section
from saga_dist.config.json_files import load_json
from saga_dist.errors import ConfigError
from saga_dist.utils.atomic_io import write_output

HEADINGS = ("case", "ours", "other", "unit", "ratio", "bar", "met")


class BenchRecord(Section):
    """One bench as it was measured."""

    size: Size
    load: float
    """Mean number of runnable processes in the minute before it began."""
    report: Report


class BenchRecords(Section):
    """What ``saga-dist bench --json`` writes: one machine, a report for each bench."""

    machine: Machine
    benches: dict[str, BenchRecord]


def load_figures(path: Path) -> BenchRecords:
    """Returns the figures in a file.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    return load_json(path, BenchRecords, what="figures of benches", fix="name another --json")


def figures_here(path: Path | None) -> BenchRecords:
    """Returns the figures in the file, or none yet.

    Raises:
        ConfigError: the file has another machine's.
        DataError: it has something else.
    """
    here = machine()
    if path is None or not path.exists():
        return BenchRecords(machine=here, benches={})
    found = load_figures(path)
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
    """Returns the figures with this bench in place of an older report of it."""
    return BenchRecords(machine=figures.machine, benches={**figures.benches, measured.report.bench: measured})


def save(figures: BenchRecords, path: Path) -> None:
    """Writes the file, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    write_output(path, (figures.model_dump_json(indent=1) + "\n").encode(), option="--json")


def markdown(measured: BenchRecord) -> str:
    """Returns a bench as Markdown: its table, then its notes."""
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
    """Returns three digits, whole from 100 on; nothing for None."""
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def verdict(met: bool | None) -> str:
    """Returns yes, NO, or nothing where nothing is asked."""
    return "" if met is None else ("yes" if met else "NO")
