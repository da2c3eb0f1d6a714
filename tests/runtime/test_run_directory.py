"""A run directory that a crash or a disk has damaged is opened again by the same command."""

from __future__ import annotations

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
