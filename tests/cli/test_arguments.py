"""The run directory that a command uses, from option, configuration and default."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.arguments import run_directory
from saga_dist.cli.main import app


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
