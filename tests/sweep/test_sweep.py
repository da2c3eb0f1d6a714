"""Sweeps for real: two variants and two seeds on the built-in birds, stopped in the middle, gone on with, counted."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app, main
from saga_dist.config import RunConfig, load_config
from saga_dist.errors import DataError
from saga_dist.retrieval.metrics import paired_test
from saga_dist.retrieval.results import Results
from saga_dist.retrieval.run_comparison import paired_t_test
from saga_dist.runtime import run
from saga_dist.sweep import runner
from saga_dist.sweep.plan import plan
from saga_dist.sweep.summary import over_seeds, summarise
from saga_dist.sweep.table import load_table
from saga_dist.utils.directory_owner import OWNER_NAME
from saga_dist.utils.owner_record import Owner

BASE: dict[str, dict[str, Any]] = {
    "run": {"steps": 8},
    "objective": {"metric_loss": "multi_similarity"},
    "rollout": {"pairs_per_batch": 2, "max_tokens": 4},
    "runtime": {"threads": 1},
    "optimizer": {"lr_encoder": 1e-3},
    "checkpoint": {"every_steps": 4},
    "evaluation": {"every_steps": 4},
}
TABLE = """
title = "Two by two"
config = "base.toml"
seeds = [0, 1]
baseline = "metric"
[[variant]]
name = "metric"
label = "metric loss"
set = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
paper = { recall_at_1 = 50.0, recall_sd = 0.5, nmi = 0.4 }
[[variant]]
name = "saga"
label = "SAGA | all"
"""
CELLS = ["metric/seed_0", "saga/seed_0", "metric/seed_1", "saga/seed_1"]


@pytest.fixture
def table_file(tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path]) -> Path:
    write_tiny_config(tmp_path / "base.toml", tiny_checkpoint, **BASE)
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path / "table.toml"


def _rows(cell: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.integration
def test_stopped_in_the_middle_and_gone_on_with(table_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "saga_dist.cli.main", "sweep", str(table_file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})
    try:
        watched, deadline = out / "saga" / "seed_0" / "metrics.jsonl", time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if watched.exists() and watched.read_text().count("\n") >= 2:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 3, output
    assert "the same command resumes" in output
    assert (out / "metric" / "seed_0" / "results.json").exists()
    assert not (out / "saga" / "seed_0" / "results.json").exists()
    assert not (out / "metric" / "seed_1").exists()
    half = json.loads((out / "table.json").read_text())
    assert [row["seeds"] for row in half["rows"]] == [[0], []]
    assert list(half["missing"]) == CELLS[1:]
    stopped_at = max(row["step"] for row in _rows(out / "saga" / "seed_0"))
    assert half["missing"]["saga/seed_0"] == f"after step {stopped_at} of 8"
    untouched = (out / "metric" / "seed_0" / "results.json").stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from {out}/saga/seed_0/checkpoints" in done.stderr
    assert (out / "metric" / "seed_0" / "results.json").stat().st_mtime_ns == untouched
    summary = json.loads((out / "table.json").read_text())
    assert summary["missing"] == {}
    assert [row["seeds"] for row in summary["rows"]] == [[0, 1], [0, 1]]

    # Every cell is an ordinary run: interrupted, on shared workers or alone, the same figures to the last digit.
    for cell in CELLS:
        steps = [row["step"] for row in _rows(out / cell) if "loss/dml" in row]
        assert steps == list(range(1, 9)), cell
    config = load_config(tmp_path / "base.toml", ["run.seed=0"])
    alone = run.train(config, tmp_path / "alone").method("trained")
    assert Results.load(out / "saga" / "seed_0" / "results.json").method("trained").splits == alone.splits

    _check_by_hand(summary, out, config)
    _check_show(table_file, out, summary)


def _check_by_hand(summary: dict, out: Path, config: RunConfig) -> None:
    for row in summary["rows"]:
        splits = [
            json.loads((out / row["name"] / f"seed_{seed}" / "results.json").read_text())["methods"][1]["splits"][
                "test"
            ]
            for seed in (0, 1)
        ]
        for name in ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "nmi"):
            a, b = (split[name] for split in splits)
            assert row["figures"][name]["mean"] == pytest.approx((a + b) / 2, abs=1e-12)
            assert row["figures"][name]["sd"] == pytest.approx(abs(a - b) / math.sqrt(2), abs=1e-12)
        low, high = row["confidence_interval"]
        assert low <= row["figures"]["recall_at_1"]["mean"] <= high
    hits = {}
    for name in ("metric", "saga"):
        files = [np.load(out / name / f"seed_{seed}" / "hits.npz") for seed in (0, 1)]
        hits[name] = np.mean([file["test/first_hit/trained"] == 1 for file in files], axis=0)
        labels = files[0]["test/labels"]
    expected = paired_test(hits["saga"], hits["metric"], labels, seed=0)
    (versus,) = summary["rows"][1]["versus"]
    assert (versus["variant"], versus["seeds"]) == ("metric", [0, 1])
    assert (versus["difference"], versus["over_classes"]["p_value"]) == (expected.difference, expected.p_value)
    by_seed = [[row["figures"]["recall_at_1"]["values"] for row in summary["rows"]][index] for index in (1, 0)]
    over_seeds = paired_t_test(*by_seed)
    assert versus["over_seeds"]["p_value"] == pytest.approx(over_seeds.p_value, abs=1e-12)
    leading = versus[f"over_{versus['leads']}"]
    assert {key: versus[key] for key in ("low", "high", "p_value")} == leading
    widths = {name: versus[name]["high"] - versus[name]["low"] for name in ("over_classes", "over_seeds")}
    assert leading["high"] - leading["low"] == max(widths.values())
    metric_only, saga = (row["training"] for row in summary["rows"])
    assert [one["images_seen"] for one in metric_only] == [8 * config.data.batch_size]
    ledgers = [(out / "saga" / f"seed_{seed}" / "ledger.jsonl").read_text().splitlines() for seed in (0, 1)]
    seen = [config.data.batch_size * sum(json.loads(row)["micro_batches"] for row in rows) for rows in ledgers]
    assert [one["images_seen"] for one in saga] == list(dict.fromkeys(seen))
    for one in (*metric_only, *saga):
        assert (one["metric_loss"], one["optimizer_steps"], one["image_height"]) == (
            "multi_similarity", 8, config.data.image_size,
        )  # fmt: skip
    means = [row["figures"]["recall_at_1"]["mean"] for row in summary["rows"]]
    assert versus["difference"] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert summary["rows"][0]["versus"] == []


def _check_show(table_file: Path, out: Path, summary: dict) -> None:
    result = CliRunner().invoke(app, ["sweep", str(table_file), "--out", str(out), "--show"], catch_exceptions=False)
    assert result.exit_code == 0
    recall = summary["rows"][1]["figures"]["recall_at_1"]
    shown = f"{100 * recall['mean']:.1f} ± {100 * recall['sd']:.1f}"
    assert shown in result.output
    assert "50.0 ± 0.5" in result.output  # the paper's
    markdown = (out / "table.md").read_text()
    assert shown in markdown
    assert "SAGA \\| all" in markdown
    row, training = [line for line in markdown.splitlines() if line.startswith("| metric loss |")]
    assert "multi_similarity" in training
    assert "| 50.0 ± 0.5 | 0.40 |" in row


@pytest.mark.integration
def test_a_failed_cell_is_reported_and_the_others_go_on(
    table_file: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damaged = shutil.copytree(tiny_checkpoint, tmp_path / "damaged") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])  # which only loading finds
    broken = f'[[variant]]\nname = "broken"\nlabel = "broken"\nset = ["model.path={damaged.parent}"]\n'
    zero = '[[variant]]\nname = "zero"\nlabel = "pre-trained"\npretrained = true\n'
    head, first, last = TABLE.partition('[[variant]]\nname = "metric"')
    last = last.partition("[[variant]]")[0]
    table_file.write_text(head.replace("[0, 1]", "[0]") + broken + first + last + zero)
    out = tmp_path / "out"
    arguments = ["saga-dist", "sweep", str(table_file), "run.steps=2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    started: list[str] = []
    build = run.build_runtime
    monkeypatch.setattr(
        runner, "build_runtime", lambda config, **options: started.append(config.model.path) or build(config, **options)
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    captured = capfd.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert "1 of 3 cells failed, first broken/seed_0" in line
    assert f"{damaged}: cannot be read" in line
    assert len(started) == 2  # the broken one's, and one that the other two share
    summary = json.loads((out / "table.json").read_text())
    assert [row["seeds"] for row in summary["rows"]] == [[], [0], [0]]
    assert summary["missing"]["broken/seed_0"].startswith("failed: ")
    assert summary["rows"][1]["figures"]["nmi"]["sd"] is None
    pretrained = Results.load(out / "zero" / "seed_0" / "results.json")
    assert [method.name for method in pretrained.methods] == ["pre-trained"]
    assert not (out / "zero" / "seed_0" / "checkpoints").exists()
    trained = Results.load(out / "metric" / "seed_0" / "results.json")
    assert pretrained.methods[0].splits == trained.method("pre-trained").splits

    # The reason is there for a later look, and the same command tries it again.
    shown = CliRunner().invoke(app, [*arguments[1:], "--show"], catch_exceptions=False)
    assert "broken/seed_0: failed: " in shown.output
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert len(started) == 3

    # A directory belongs to its table.
    monkeypatch.setattr(sys, "argv", [*arguments, "optimizer.lr_encoder=0.5"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "optimizer.lr_encoder" in capfd.readouterr().err


@pytest.mark.integration
def test_cells_of_other_queries_are_not_compared(table_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = plan(load_table(table_file), table_file, out, overrides=["run.steps=1"], seeds=(0,))
    for cell, count in zip(cells, (2, 3), strict=True):
        config = load_config(
            tmp_path / "base.toml",
            [
                *cell.variant.overrides,
                "objective.lambda_lm=0",
                "objective.lambda_kl=0",
                "run.steps=1",
                f"data.birds.test_images_per_class={count}",
            ],
        )
        run.train(config, cell.directory)
    with pytest.raises(DataError, match="saga/seed_0 and metric/seed_0 were evaluated on other queries"):
        summarise(load_table(table_file), cells, {})


def test_mean_and_spread_by_hand() -> None:
    figure = over_seeds([0.8, 0.9, 0.85])
    assert figure.mean == pytest.approx(0.85)
    assert figure.sd == pytest.approx(0.05)
    assert over_seeds([0.3]).sd is None


def test_a_second_sweep_of_a_directory_writes_no_table(
    table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    owner = Owner("0" * 32, "another boot", "gpu7", 4242, "2026-01-02 03:04:05 UTC", "saga-dist sweep")
    with (out / OWNER_NAME).open("w+b") as file:
        file.write(owner.content(1))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)  # tells open files apart, so it is held as by another process
        monkeypatch.setattr(sys, "argv", ["saga-dist", "sweep", str(table_file), "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert "out: is being written by host gpu7, pid 4242" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [OWNER_NAME]
