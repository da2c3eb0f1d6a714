"""docs/benches.md has the figures that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.bench.common import Size
from saga_dist.bench.records import load_records, markdown
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
