"""Configuration and directory of a training, from what a user gives: options, a path, a mapping, an object."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import load_config
from saga_dist.config.loading import resolve_config
from saga_dist.errors import ConfigError
from saga_dist.runtime.resolve import resolve_run, run_directory


def test_the_run_directory_is_absolute_whoever_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_directory(Path("option"), "configured", default=Path("default")) == tmp_path / "option"
    assert run_directory(None, "configured", default=Path("default")) == tmp_path / "configured"
    assert run_directory(None, "", default=Path("default")) == tmp_path / "default"
    assert run_directory(tmp_path / "elsewhere", "", default=Path("default")) == tmp_path / "elsewhere"


def test_the_plan_prints_where_a_relative_run_directory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", "birds", "--run-dir", "mine", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'mine'} (new)" in done.stdout


def test_a_configuration_may_be_a_path_a_mapping_or_an_object() -> None:
    from_file = load_config("birds", ["run.steps=7"])
    sections = load_config("birds").model_dump(mode="json")
    steps = sections["run"]["steps"]
    assert resolve_config("birds", ["run.steps=7"]) == from_file
    assert resolve_config(sections, ["run.steps=7"]) == from_file
    assert resolve_config(load_config("birds"), ["run.steps=7"]) == from_file
    assert sections["run"]["steps"] == steps != 7  # the caller's mapping is as it was


def test_a_path_names_the_default_run_directory_and_an_object_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_run("birds").directory == tmp_path / "runs" / "birds"
    recorded = resolve_run("birds", run_dir="mine", from_recording="other")
    assert (recorded.directory, recorded.config.rollout.recording) == (tmp_path / "mine", "other")
    with pytest.raises(ConfigError, match=r"run_dir: no run directory; give run_dir"):
        resolve_run(load_config("birds"))
