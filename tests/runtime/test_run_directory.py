"""A run directory that a crash or a disk has damaged is opened again by the same command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_run_config, parse_config
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.runtime.run import open_run_directory


def config_with(seed: int = 0) -> RunConfig:
    return parse_config({"run": {"seed": seed}, "data": {"layout": "birds", "image_size": 80}}, where="test")


def test_what_an_interrupted_write_left_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.tmp-0123abcd").write_text('{"run"')  # the very first write was cut off
    open_run_directory(run, config_with())
    (run / "rollouts").mkdir()
    (run / "rollouts" / ".step_000000.arrow.tmp-0123abcd").write_bytes(b"half")
    (run / ".model.tmp-0123abcd").mkdir()
    open_run_directory(run, config_with())
    assert [path.name for path in sorted(run.rglob("*"))] == ["config.json", "rollouts"]


@pytest.mark.parametrize("content", [b"", b'{"run": {"seed"', b"\xff\xfe\x00"])
def test_a_damaged_config_is_renamed_and_written_again(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run_directory(tmp_path / "run", config_with())
    (run / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="not valid JSON; the `train` command of this run writes it again"):
        load_run_config(run)
    open_run_directory(run, config_with())
    assert load_run_config(run) == config_with()
    (damaged,) = run.glob("config.json.damaged-*")
    assert damaged.read_bytes() == content
    assert f"renamed to {damaged.name} and written again" in caplog.text
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="belongs to another configuration: run.seed: 0 != 1; choose a new --run-dir"):
        open_run_directory(run, config_with(seed=1))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files but no config.json; choose a new --run-dir"):
        open_run_directory(tmp_path, config_with())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_step_a_changed_configuration_replaces_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run_directory(tmp_path / "run", config_with())
    for name in ("metrics.jsonl", "ledger.jsonl"):
        (run / name).touch()
    for folder in ("rollouts", "checkpoints", "tensorboard"):
        (run / folder).mkdir()
    (run / "tensorboard" / "events").write_bytes(b"x")
    open_run_directory(run, config_with(seed=3))
    assert load_run_config(run) == config_with(seed=3)
    (record,) = caplog.records
    assert record.getMessage().endswith("no step was taken, so its configuration is replaced: run.seed: 0 != 3")


@pytest.mark.parametrize(
    "left",
    [
        "metrics.jsonl",
        "ledger.jsonl",
        "results.json",
        "checkpoints/step_00000001/manifest.json",
        "rollouts/step_000000.arrow",
        "model/manifest.json",
    ],
)
def test_with_a_step_or_a_result_it_is_refused_and_stays(tmp_path: Path, left: str) -> None:
    run = open_run_directory(tmp_path / "run", config_with())
    (run / left).parent.mkdir(parents=True, exist_ok=True)
    (run / left).write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="belongs to another configuration: run.seed: 0 != 3; choose a new --run-dir"):
        open_run_directory(run, config_with(seed=3))
    assert load_run_config(run) == config_with()


def test_the_refusal_names_some_keys_and_counts_the_others(tmp_path: Path) -> None:
    run = open_run_directory(tmp_path / "run", config_with())
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    other = {"kl_layer": 1, "lambda_dml": 2.0, "lambda_kl": 2.0, "lambda_lm": 2.0, "advantage_epsilon": 0.1}
    tree = {"data": {"layout": "birds", "image_size": 80}, "objective": other, "run": {"seed": 5}}
    with pytest.raises(ConfigError) as caught:
        open_run_directory(run, parse_config(tree, where="test"))
    for named in ("advantage_epsilon: 0.0001 != 0.1", "kl_layer: 26 != 1", "lambda_kl: 1.0 != 2.0"):
        assert f"objective.{named}" in str(caught.value)
    assert "(and 2 more)" in str(caught.value)


def test_a_configuration_of_a_failed_start_that_is_not_valid_is_replaced(tmp_path: Path) -> None:
    run = open_run_directory(tmp_path / "run", config_with())
    tree = json.loads((run / "config.json").read_text())
    tree["objective"]["metric_params"] = {"gamma": 1.0}  # an earlier version found this out later
    (run / "config.json").write_text(json.dumps(tree))
    open_run_directory(run, config_with())
    assert load_run_config(run) == config_with()
    (run / "config.json").write_text(json.dumps(tree))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="gamma"):
        open_run_directory(run, config_with())


def test_what_a_start_leaves_before_its_configuration_is_no_run(tmp_path: Path) -> None:
    for folder in ("rollouts", "checkpoints"):
        (tmp_path / folder).mkdir()
    for file in (".owner.json", ".config.json.tmp-0123abcd", "run.lock"):
        (tmp_path / file).write_text("{")
    open_run_directory(tmp_path, config_with())
    assert load_run_config(tmp_path) == config_with()


def test_a_folder_with_files_is_not_taken_for_such_a_start(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step_000000.arrow").write_bytes(b"recorded")
    with pytest.raises(ConfigError, match="holds files but no config.json"):
        open_run_directory(tmp_path, config_with())
