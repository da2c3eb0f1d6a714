"""docs/benches.md and the README have the figures that were measured, all of them and some."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.bench.common import BenchRow, Size
from saga_dist.bench.records import load_records, markdown, number
from saga_dist.cli.bench import Bench

ROOT = Path(__file__).resolve().parents[2]
FIGURES = load_records(ROOT / "docs" / "benches.json")


def test_every_bench_was_measured_at_the_size_of_its_bars() -> None:
    assert set(FIGURES.benches) == {bench.value for bench in Bench if bench is not Bench.ALL}
    assert {one.size for one in FIGURES.benches.values()} == {Size.FULL}
    assert all(one.report.equal for one in FIGURES.benches.values())


@pytest.mark.parametrize("name", FIGURES.benches)
def test_page_has_what_was_measured(name: str) -> None:
    assert markdown(FIGURES.benches[name]) in (ROOT / "docs" / "benches.md").read_text("utf-8")


def test_rows_of_the_readme_are_rows_of_the_page() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    start = lines.index("| bench | case | ours | other | | times better | asked |") + 2
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
    shown = lines[start:end]
    possible = {line(name, row) for name, one in FIGURES.benches.items() for row in one.report.rows}
    assert not set(shown) - possible
    assert {row.split("|")[1].strip() for row in shown} == set(FIGURES.benches)


def line(name: str, row: BenchRow) -> str:
    cells = (name, row.case, number(row.ours), number(row.other), row.unit, number(row.ratio), number(row.bar))
    return f"| {' | '.join(cells)} |"
