"""Every bench in its smallest size: both sides run, agree, and leave figures that can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.bench.common import (
    BenchRow,
    Machine,
    Report,
    Size,
    in_turns,
    less_is_better,
    more_is_better,
    peak_memory,
)
from saga_dist.bench.records import BenchRecord, BenchRecords, load_records, markdown, save
from saga_dist.cli import bench
from saga_dist.cli.bench import Bench, measure
from saga_dist.cli.main import app
from saga_dist.errors import ConfigError, DataError

CASES = {
    Bench.REPLAY: ["T = 6: time", "T = 6: memory", "ragged: time", "ragged: memory"],
    Bench.ROLLOUT: ["stand-in: transformers", "payload of a group"],
    Bench.EVALUATION: [
        "all, AccuracyCalculator",
        "R@K, MAP@R, torch",
        "memory",
        "40: torch",
        "40: products",
        "40: memory, torch",
    ],
    Bench.IMAGES: ["the same pixels", "fast_jpeg"],
    Bench.STEP: ["one step, transformers engine"],
}


SLOW = (Bench.EVALUATION, Bench.REPLAY, Bench.ROLLOUT, Bench.STEP)
"""Benches of many seconds, whose sides have tests of their own."""


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_both_sides_run_and_agree(name: Bench, assert_readable: Callable[[Report], None]) -> None:
    report = measure(name, Size.TINY)
    assert_readable(report)
    assert [row.case for row in report.rows] == CASES[name]
    assert all(row.other is not None for row in report.rows)


@pytest.mark.slow
def test_start_waits_for_help_dry_run_and_a_first_step(assert_readable: Callable[[Report], None]) -> None:
    report = measure(Bench.START, Size.TINY)
    assert_readable(report)
    assert [row.case for row in report.rows] == ["--help", "--dry-run", "first step: serial, transformers"]
    assert all(row.other is None for row in report.rows)


def test_the_command_writes_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(name: Bench, size: Size) -> Report:
        asked.append((name, size))
        return Report(name.value, "something else", (less_is_better("case", 2.0, 5.0, "s", equal=True, bar=3.0),))

    monkeypatch.setattr(bench, "measure", measured)
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(app, ["bench", "replay", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "2.5" in done.output and "NO" in done.output
    figures = load_records(file)
    assert figures.machine.cores >= 1
    assert figures.benches["replay"].size is Size.FULL
    assert figures.benches["replay"].report.rows[0].ratio == 2.5
    assert figures.benches["replay"].report.rows[0].met is False
    assert CliRunner().invoke(app, ["bench", "images", "--json", str(file), "--quick"]).exit_code == 0
    both = load_records(file)
    assert (both.benches["replay"], both.benches["images"].size) == (figures.benches["replay"], Size.QUICK)
    del asked[1:]
    assert CliRunner().invoke(app, ["bench"]).exit_code == 0
    assert asked[0] == (Bench.REPLAY, Size.FULL)
    assert asked[1:] == [(name, Size.QUICK) for name in Bench if name is not Bench.ALL]


def test_markdown_has_the_same_figures() -> None:
    rows = (
        less_is_better("a", 2.0, 5.0, "s", equal=True, bar=3.0),
        BenchRow("b", 540.2, None, "1/s", None, 500, True, True),
    )
    measured = BenchRecord(size=Size.QUICK, load=1.5, report=Report("scaling", "waiting", rows, ("two workers",)))
    assert markdown(measured).splitlines() == [
        "**scaling** against waiting",
        "",
        "| case | ours | other | unit | ratio | bar | met |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| a | 2 | 5 | s | 2.5 | 3 | NO |",
        "| b | 540 |  | 1/s |  | 500 | yes |",
        "",
        "two workers.",
        "size quick, load 1.5.",
    ]


def test_figures_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    save(BenchRecords(machine=Machine(processor="abacus", cores=1, torch="0.1", device="beads"), benches={}), file)
    done = CliRunner().invoke(app, ["bench", "replay", "--json", str(file)])
    assert isinstance(done.exception, ConfigError) and "another machine (beads, abacus" in str(done.exception)
    file.write_text("{}")
    done = CliRunner().invoke(app, ["bench", "replay", "--json", str(file)])
    assert isinstance(done.exception, DataError) and "not figures of benches" in str(done.exception)


def test_ratios_say_how_many_times_better_ours_is() -> None:
    assert less_is_better("time", 2.0, 8.0, "s", equal=True, bar=4.0).met is True
    assert less_is_better("time", 2.0, 7.9, "s", equal=True, bar=4.0).met is False
    assert more_is_better("rate", 9.0, 3.0, "1/s", equal=True).ratio == 3.0
    assert more_is_better("rate", 9.0, 3.0, "1/s", equal=True).met is None
    wrong = BenchRow("case", 1.0, 1.0, "s", 1.0, None, None, equal=False)
    assert not Report("bench", "other", (wrong, less_is_better("time", 1, 1, "s", equal=True))).equal


def test_sides_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    ours, other = in_turns(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert len(ours.cpu_s) == len(other.wall_s) == 3


@pytest.mark.integration
def test_peak_memory_sees_what_was_freed_again() -> None:
    def take_64_mb() -> int:
        return sum(bytearray(b"x" * (64 << 20))[:: 1 << 20])

    assert 60 << 20 < peak_memory(take_64_mb) < 200 << 20
    assert peak_memory(lambda: None) < 20 << 20
