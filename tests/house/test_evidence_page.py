"""docs/evidence.md has the figures of the screen and of the tables that are shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saga_dist.diagnostics.screen_results import ATTENTION, BOTH, METRIC, TEXT, WorldResult, load_screen
from saga_dist.sweep.collected import load_collected, side_by_side
from saga_dist.sweep.figure import figure
from saga_dist.sweep.table import load_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text("utf-8")
SCREEN = load_screen(ROOT / "configs" / "evidence" / "screen.json")


def test_every_world_of_the_screen_is_on_the_page_and_has_a_configuration() -> None:
    on_page = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert on_page == {world.world for world in SCREEN.worlds}
    assert all((ROOT / "configs" / "evidence" / f"{name}.toml").is_file() for name in on_page)


@pytest.mark.parametrize("world", SCREEN.worlds, ids=lambda world: world.world)
def test_a_row_is_what_was_found(world: WorldResult) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{world.world}` |")]
    metric, *gains = (re.sub(r"[* ]", "", cell) for cell in line.strip("|").split("|")[2:])
    rows = world.rows
    assert metric == f"{100 * rows[METRIC].mean:.1f}"
    for cell, name in zip(gains, (TEXT, ATTENTION, BOTH), strict=True):
        p = rows[name].p_value
        assert p is not None
        assert cell == f"{100 * (rows[name].mean - rows[METRIC].mean):+.1f}({'<0.001' if p < 0.001 else f'{p:.3f}'})"


COLLECTED = load_collected(ROOT / "configs" / "evidence" / "results.json")


def test_the_real_test_is_on_the_page_and_drawn() -> None:
    assert side_by_side(COLLECTED) in PAGE
    assert (ROOT / "docs" / "evidence.svg").read_text("utf-8") == figure(COLLECTED)


@pytest.mark.parametrize("name", COLLECTED.tables)
def test_every_result_belongs_to_a_shipped_table(name: str) -> None:
    table, found = load_table(ROOT / "configs" / "evidence" / f"{name}.toml"), COLLECTED.tables[name]
    assert [(row.name, row.label) for row in found.rows] == [(row.name, row.label) for row in table.variant]
    assert found.num_queries >= 2000
    for row in found.rows:
        assert set(row.seeds) <= set(table.seeds)
        assert all(len(one.values) == len(row.seeds) for one in row.figures.values())
