"""docs/evidence.md and README.md have the figures of the screen and of the tables that are shipped, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saga_dist.config import load_config
from saga_dist.diagnostics.screen_results import ATTENTION, BOTH, METRIC, TEXT, WorldResult, load_screen
from saga_dist.retrieval.run_comparison import paired_t_test
from saga_dist.sweep.collected import all_comparisons, all_training, load_collected, side_by_side
from saga_dist.sweep.figure import figure
from saga_dist.sweep.plan import plan
from saga_dist.sweep.table import load_table
from saga_dist.training.training_facts import training_facts

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text("utf-8")
SCREEN = load_screen(ROOT / "configs" / "evidence" / "screen.json")


def test_every_world_of_the_screen_is_on_the_page_and_has_a_configuration() -> None:
    on_page = set(re.findall(r"^\| `(?!table_)(\w+)` \|", PAGE, re.MULTILINE))
    assert on_page == {world.world for world in SCREEN.worlds}
    assert all((ROOT / "configs" / "evidence" / f"{name}.toml").is_file() for name in on_page)


@pytest.mark.parametrize("world", SCREEN.worlds, ids=lambda world: world.world)
def test_a_row_is_what_was_found(world: WorldResult) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{world.world}` |")]
    metric, *gains = (cell.strip() for cell in line.strip("|").split("|")[2:])
    rows = world.rows
    assert metric == f"{100 * rows[METRIC].mean:.1f}"
    for cell, name in zip(gains, (TEXT, ATTENTION, BOTH), strict=True):
        over_classes = rows[name].p_value
        assert over_classes is not None
        over_seeds = paired_t_test(rows[name].recall_at_1, rows[METRIC].recall_at_1).p_value
        texts = [(p, "< 0.001" if p < 0.001 else f"{p:.3f}") for p in (over_seeds, over_classes)]
        sources = (f"over {len(world.seeds)} seeds", "over classes")
        larger, smaller = sorted(zip(texts, sources, strict=True), reverse=True)
        points = f"{100 * (rows[name].mean - rows[METRIC].mean):+.1f}"
        shown = f"**{points}**" if max(over_seeds, over_classes) < 0.05 else points
        assert cell == f"{shown}, p {larger[0][1]} {larger[1]}, {smaller[0][1]} {smaller[1]}"


COLLECTED = load_collected(ROOT / "configs" / "evidence" / "results.json")


def test_the_real_test_is_on_the_page_and_drawn() -> None:
    assert side_by_side(COLLECTED) in PAGE
    assert all_comparisons(COLLECTED) in PAGE
    assert all_training(COLLECTED) in PAGE
    assert (ROOT / "docs" / "evidence.svg").read_text("utf-8") == figure(COLLECTED)


@pytest.mark.parametrize("name", COLLECTED.tables)
def test_every_result_belongs_to_a_shipped_table(name: str) -> None:
    table, found = load_table(ROOT / "configs" / "evidence" / f"{name}.toml"), COLLECTED.tables[name]
    assert [(row.name, row.label) for row in found.rows] == [(row.name, row.label) for row in table.variant]
    assert found.num_queries >= 2000
    path = ROOT / "configs" / "evidence" / f"{name}.toml"
    cells = plan(table, path, Path("runs") / "none", overrides=(), seeds=())
    for row in found.rows:
        assert set(row.seeds) <= set(table.seeds)
        assert all(len(one.values) == len(row.seeds) for one in row.figures.values())
        own = [cell for cell in cells if cell.variant.name == row.name and cell.seed in row.seeds]
        facts = [training_facts(cell.config, cell.directory, pretrained=cell.variant.pretrained) for cell in own]
        # Which step was selected is known from the runs alone.
        found_facts = [one.model_copy(update={"selected_step": None}) for one in row.training]
        assert list(dict.fromkeys(found_facts)) == list(dict.fromkeys(facts))


@pytest.mark.parametrize("name", COLLECTED.tables)
def test_tests_over_seeds_are_those_of_the_values_in_the_file(name: str) -> None:
    rows = {row.name: row for row in COLLECTED.tables[name].rows}
    recalls = {key: dict(zip(row.seeds, row.figures["recall_at_1"].values, strict=True)) for key, row in rows.items()
               if row.figures}  # fmt: skip
    for key, row in rows.items():
        for one in row.versus:
            own, other = ([recalls[which][seed] for seed in one.seeds] for which in (key, one.variant))
            if len(one.seeds) < 2:
                assert (one.over_seeds, one.leads) == (None, "classes")
                continue
            assert one.over_seeds is not None and one.over_classes is not None
            expected = paired_t_test(own, other)
            assert (one.over_seeds.low, one.over_seeds.high) == pytest.approx((expected.low, expected.high))
            assert one.over_seeds.p_value == pytest.approx(expected.p_value)
            assert one.difference == pytest.approx(expected.difference, abs=1e-9)
            widths = {"classes": one.over_classes, "seeds": one.over_seeds}
            wider = max(widths, key=lambda source: widths[source].high - widths[source].low)
            assert (one.leads, one.low, one.high) == (wider, widths[wider].low, widths[wider].high)


README = (ROOT / "README.md").read_text("utf-8")
COMPARISON = re.compile(r"([+-]\d+\.\d)[^()|]{0,30} \(([+-]\d+\.\d) to ([+-]\d+\.\d)(?:,\s+p (\d\.\d{3}))?")
PROSE = {
    "docs/evidence.md": PAGE[PAGE.index("**Each loss's share**") : PAGE.index("## Why GRPO")],
    "README.md": README[README.index("## Evidence") : README.index("## Your own images")],
}


def printed_comparisons() -> set[tuple[str, ...]]:
    """Points, both ends of the interval that leads and p of every comparison that ``evidence collect`` prints."""
    found = set()
    for line in all_comparisons(COLLECTED).splitlines()[2:]:
        points, p = (cell.strip() for cell in line.split("|")[4:6])
        found.add((*re.findall(r"[+-]\d+\.\d", points), p))
    return found


@pytest.mark.parametrize("page", PROSE)
def test_every_number_in_words_is_a_printed_comparison_with_its_interval(page: str) -> None:
    text = " ".join(PROSE[page].split())
    printed = printed_comparisons()
    claims = COMPARISON.findall(text)
    assert len(claims) >= 8
    for *numbers, p in claims:
        matching = [one for one in printed if one[:3] == tuple(numbers)]
        assert matching, numbers
        assert not p or (*numbers, p) in matching
        assert not p or float(p) < 0.05, "p stands beside effects that are claimed"
    # What is left has no number of points, but means of rows.
    rest = COMPARISON.sub("", text)
    rest = re.sub(r"arXiv \d+\.\d+|95 %", "", rest)
    cells = side_by_side(COLLECTED)
    for mean in re.findall(r"\d+\.\d ± \d+\.\d", rest):
        assert f"| {mean}" in cells, mean
    assert not re.findall(r"\d+\.\d", re.sub(r"\d+\.\d ± \d+\.\d", "", rest))


@pytest.mark.parametrize("page", PROSE)
def test_what_is_claimed_in_words_does_not_include_zero(page: str) -> None:
    """An interval that includes zero stands where the text says that no effect is shown."""
    text = " ".join(PROSE[page].split())
    for sentence in re.split(r"(?<=\.)\s", text):
        for points, low, high, p in COMPARISON.findall(sentence):
            if not p and float(low) <= 0 <= float(high):
                assert re.search(r"no effect|shows none|told from|shown nowhere|not shown", sentence), (
                    points,
                    sentence,
                )


def test_both_pages_name_the_metric_loss_of_their_figures() -> None:
    others = {name: {"potential_field", "proxy_anchor"} for name in ("table_h_losses", "table_g8_losses")}
    for name, table in COLLECTED.tables.items():
        found = {facts.metric_loss for row in table.rows for facts in row.training} - {None}
        assert found == others.get(name, {"multi_similarity"}), name
    demo = load_config(ROOT / "saga_dist" / "standin" / "demo.toml")
    assert demo.objective.metric_loss == "potential_field"
    assert "the demo's run, which has Potential Field" in PAGE
    for world in SCREEN.worlds:
        config = load_config(ROOT / "configs" / "evidence" / f"{world.world}.toml")
        assert config.objective.metric_loss == "multi_similarity"
    assert "taken with the metric loss\nmulti-similarity**" in PAGE
    assert "with multi-similarity as the metric loss unless another is named" in README


def test_only_rows_with_options_are_called_tuned() -> None:
    """With multi-similarity the linear key is the better baseline in world H, and not the one compared."""
    for text in PROSE.values():
        assert not re.search(r"(?<!not )\btuned\b(?! row)", text)
    for name, table in COLLECTED.tables.items():
        for row in table.rows:
            assert bool(row.choices) == ("tuned" in row.label and bool(row.figures)), (name, row.name)
    rows = {row.name: row.figures for row in COLLECTED.tables["table_h"].rows}
    assert rows["metric_linear"]["recall_at_1"].mean > rows["metric_mlp"]["recall_at_1"].mean
