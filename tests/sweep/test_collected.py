"""Tables of several sweeps in one file, one table and one picture."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.errors import ConfigError, DataError
from saga_dist.retrieval.results import TrainingFacts
from saga_dist.sweep.collected import (
    Collected,
    all_comparisons,
    all_training,
    collect,
    keep_longer_rows,
    load_collected,
    side_by_side,
)
from saga_dist.sweep.figure import figure
from saga_dist.sweep.records import PairedComparison, SourceTest, Summary, SummaryRow
from saga_dist.sweep.render import write_summary
from saga_dist.sweep.summary import FIGURES, over_seeds

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, label: str, values: tuple[float, ...], *versus: PairedComparison) -> SummaryRow:
    return SummaryRow(
        name=name,
        label=label,
        seeds=tuple(range(len(values))),
        figures={key: over_seeds(values) for key in FIGURES} if values else {},
        confidence_interval=(min(values) - 0.05, max(values) + 0.05) if values else None,
        paper=None,
        versus=versus,
    )


def sweep(folder: Path, name: str, *rows: SummaryRow, missing: dict[str, str] | None = None) -> Path:
    (folder / name).mkdir()
    write_summary(
        Summary(title=f"World {name}", num_queries=80, num_classes=4, rows=rows, missing=missing or {}), folder / name
    )
    return folder / name


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    ahead = PairedComparison(variant="metric", seeds=(0, 1), difference=0.123, low=0.1, high=0.15, p_value=0.0004)
    a_little = PairedComparison(variant="grpo", seeds=(0,), difference=0.03, low=0.02, high=0.04, p_value=0.0123)
    behind = PairedComparison(variant="metric", seeds=(0,), difference=-0.02, low=-0.05, high=0.01, p_value=0.25)
    g = [
        row("metric", "metric <loss>", (0.2, 0.3)),
        row("grpo", "+ GRPO", ()),
        row("saga", "+ all", (0.35, 0.4), ahead, a_little),
    ]
    h = [
        row("metric", "metric <loss>", (0.1,)),
        row("grpo", "+ GRPO", (0.08,), behind),
        row("saga", "+ all", ()),
    ]
    return [sweep(tmp_path, "g", *g), sweep(tmp_path, "h", *h, missing={"saga/seed_0": "not begun"})]


def test_command_writes_table_file_and_picture(directories: list[Path], tmp_path: Path) -> None:
    file, picture = tmp_path / "results.json", tmp_path / "results.svg"
    options = [*map(str, directories), "--json", str(file), "--figure", str(picture)]
    said = CliRunner().invoke(app, ["evidence", "collect", *options], catch_exceptions=False).output
    assert "2 tables, 6 runs, 1 without results" in said
    collected = load_collected(file)
    assert collected == collect(directories)
    assert list(collected.tables) == ["g", "h"]
    assert side_by_side(collected) in said
    assert picture.read_text("utf-8") == figure(collected)


def test_table_has_a_line_for_each_variant(directories: list[Path]) -> None:
    assert side_by_side(collect(directories)).splitlines() == [
        "| | `g` | `h` |",
        "|---|---:|---:|",
        "| metric <loss> | 25.0 ± 7.1 | 10.0 |",
        "| + GRPO | – | 8.0 (-2.0, p 0.250, one run, only 4 classes) |",
        "| + all | 37.5 ± 3.5 (+12.3, p 0.126, only 2 seeds, only 4 classes; "
        "+3.0, p 0.012, one run, only 4 classes) | – |",
    ]


def test_files_of_version_0_1_get_the_tests_over_seeds_that_follow_from_their_values(directories: list[Path]) -> None:
    """Gains of 15 and 10 points: mean 12.5, error 2.5, t = 5 with one degree of freedom."""
    tree = json.loads((directories[0] / "table.json").read_text("utf-8"))
    for line in tree["rows"]:
        for key in ("class_interval", "seed_interval", "training"):
            del line[key]
        for one in line["versus"]:
            assert (one.pop("leads"), one.pop("over_classes"), one.pop("over_seeds")) == ("classes", None, None)
    (directories[0] / "table.json").write_text(json.dumps(tree))
    metric, _, saga = collect(directories).tables["g"].rows
    ahead, a_little = saga.versus
    assert ahead.over_classes == SourceTest(low=0.1, high=0.15, p_value=0.0004)
    assert (ahead.difference, ahead.leads) == (0.123, "seeds")
    assert ahead.p_value == pytest.approx(1 - 2 * math.atan(5) / math.pi)
    half = 0.025 * math.tan(math.pi * 0.475)  # the 97.5 % quantile of t with one degree of freedom
    assert (ahead.low, ahead.high) == pytest.approx((0.125 - half, 0.125 + half))
    assert (a_little.over_seeds, a_little.leads, a_little.p_value) == (None, "classes", 0.0123)
    assert metric.class_interval == pytest.approx((0.15, 0.35))
    # 25 +- 5 points of error times 12.7 is cut to the shares that exist.
    assert metric.confidence_interval == metric.seed_interval == pytest.approx((0.0, 0.25 + 2 * half))
    assert metric.interval_over == "seeds"


def test_a_comparison_whose_runs_are_elsewhere_keeps_the_test_it_has(directories: list[Path]) -> None:
    """The other row was taken from a file in which one of the seeds is missing."""
    tree = json.loads((directories[0] / "table.json").read_text("utf-8"))
    tree["rows"][0]["seeds"] = [0, 7]
    (directories[0] / "table.json").write_text(json.dumps(tree))
    (ahead, _) = collect(directories).tables["g"].rows[2].versus
    assert (ahead.over_seeds, ahead.leads, ahead.p_value) == (None, "classes", 0.0004)


def test_every_comparison_is_printed_with_both_intervals(directories: list[Path]) -> None:
    assert all_comparisons(collect(directories)).splitlines() == [
        "| table | variant | against | points | p | over | also | remark |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        "| `g` | + all | metric <loss> | +12.3 (-19.3 to +44.3) | 0.126 | 2 seeds | +10.0 to +15.0, p < 0.001 "
        "(4 classes) | only 2 seeds; only 4 classes |",
        "| `g` | + all | + GRPO | +3.0 (+2.0 to +4.0) | 0.012 | 4 classes | | "
        "one run: says nothing about other runs; only 4 classes |",
        "| `h` | + GRPO | metric <loss> | -2.0 (-5.0 to +1.0) | 0.250 | 4 classes | | "
        "one run: says nothing about other runs; only 4 classes |",
    ]


def test_rows_of_equal_training_share_a_line(directories: list[Path]) -> None:
    facts = [
        TrainingFacts(metric_loss="infonce", optimizer_steps=5, images_seen=images, image_height=80, image_width=80,
                      pretraining=start)
        for images, start in ((320, "standin"), (1280, "standin-1"))
    ]  # fmt: skip
    tables = collect(directories).tables
    rows = [one.model_copy(update={"training": tuple(facts)}) for one in tables["g"].rows]
    lines = all_training(Collected(tables={"g": tables["g"].model_copy(update={"rows": tuple(rows)})})).splitlines()
    assert lines[2:] == ["| `g` | metric <loss>; + all | infonce | 320–1,280 | 5 | 80 | standin, standin-1 |"]
    assert all_training(collect(directories[1:])).splitlines()[2:] == [
        "| `h` | metric <loss>; + GRPO | – | – | – | – | – |"
    ]


def test_a_kept_file_alone_is_printed_again(directories: list[Path], tmp_path: Path) -> None:
    file, again = tmp_path / "results.json", tmp_path / "again.json"
    runner = CliRunner()
    first = runner.invoke(app, ["evidence", "collect", *map(str, directories), "--json", str(file)])
    second = runner.invoke(app, ["evidence", "collect", "--keep", str(file), "--json", str(again)])
    assert (first.output, file.read_bytes()) == (second.output, again.read_bytes())
    assert all_comparisons(load_collected(file)) in first.output
    assert all_training(load_collected(file)) in first.output
    none = runner.invoke(app, ["evidence", "collect"])
    assert isinstance(none.exception, ConfigError) and "--keep FILE" in str(none.exception)


def test_picture_has_a_dot_for_every_run_where_it_belongs(directories: list[Path]) -> None:
    tree = ET.fromstring(figure(collect(directories)))
    words = [text.text for text in tree.iter(f"{SVG}text")]
    gain_g = "+12.3, p 0.126, only 2 seeds, only 4 classes; +3.0, p 0.012, one run, only 4 classes"
    gain_h = "-2.0, p 0.250, one run, only 4 classes"
    assert {"World g", "World h", "metric <loss>", gain_g, gain_h} <= set(words)
    assert words.count("+ all") == 1  # nothing is drawn of a row without runs
    runs = [circle for circle in tree.iter(f"{SVG}circle") if circle.get("class") == "run"]
    assert len(runs) == 6
    # Panel g ends at 100 %, above the interval of two seeds: 360 units, right of 13 letters of 6.4 and 24 more.
    left = 24 + 6.4 * len("metric <loss>")
    assert [float(circle.get("cx", "")) for circle in runs[:4]] == pytest.approx(
        [left + 360 * share for share in (0.2, 0.3, 0.35, 0.4)], abs=0.06
    )
    means = [float(line.get("x1", "")) for line in tree.iter(f"{SVG}line") if line.get("class") == "mean"]
    assert means[:2] == pytest.approx([left + 360 * 0.25, left + 360 * 0.375], abs=0.06)


def test_rows_with_more_runs_stay(directories: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    options = ["evidence", "collect", *map(str, directories), "--json", str(file)]
    CliRunner().invoke(app, options, catch_exceptions=False)
    (tmp_path / "elsewhere").mkdir()
    shorter, equal, longer = (
        row("metric", "metric <loss>", ()),
        row("grpo", "+ GRPO", (0.09,)),
        row("saga", "+ all", (0.5,)),
    )
    missing = {"metric/seed_0": "not begun", "metric/seed_1": "not begun"}
    again = sweep(tmp_path / "elsewhere", "h", shorter, equal, longer, missing=missing)
    options = ["evidence", "collect", str(again), "--keep", str(file), "--json", str(file)]
    assert "2 tables, 7 runs, 1 without results" in CliRunner().invoke(app, options, catch_exceptions=False).output
    kept = load_collected(file)
    assert kept.tables["g"] == collect(directories).tables["g"]
    assert [row.figures["recall_at_1"].values for row in kept.tables["h"].rows] == [(0.1,), (0.09,), (0.5,)]
    assert kept.tables["h"].missing == {"metric/seed_1": "not begun"}


def test_tables_of_another_test_are_not_mixed(directories: list[Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = collect([sweep(tmp_path / "elsewhere", "h", row("metric", "metric <loss>", (0.1,)))])
    with pytest.raises(DataError, match="table h has other queries or rows"):
        keep_longer_rows(collect(directories), other)


def test_a_table_may_grow_rows(directories: list[Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    before = collect(directories)
    names = [(one.name, one.label) for one in before.tables["h"].rows]
    grown = [row("new", "+ new", (0.7,)), *(row(name, label, ()) for name, label in names)]
    after = keep_longer_rows(before, collect([sweep(tmp_path / "elsewhere", "h", *grown)])).tables["h"]
    assert [one.name for one in after.rows] == ["new", *(name for name, _ in names)]
    assert after.rows[0].figures["recall_at_1"].values == (0.7,)
    assert after.rows[1:] == before.tables["h"].rows


def test_what_is_no_sweep_is_one_line(directories: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/table\.json.*saga-dist sweep"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="two tables are called g"):
        collect([directories[0], directories[0]])
    (directories[0] / "table.json").write_text("[]")
    with pytest.raises(DataError, match="not a table"):
        collect(directories)
