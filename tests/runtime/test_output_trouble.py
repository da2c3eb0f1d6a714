"""A disk that fills up while a run writes, a directory that goes, a second writer: one line, and nothing is lost."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_dist.cli.main import main
from saga_dist.config import load_config
from saga_dist.errors import OutputError
from saga_dist.metrics.log import MetricsLog
from saga_dist.runtime.run import train
from saga_dist.types import StepResult
from saga_dist.utils.directory_owner import OWNER_NAME, owned_directory

pytestmark = pytest.mark.integration


@pytest.fixture
def config_file(tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path]) -> Path:
    return write_tiny_config(
        tmp_path / "run.toml",
        tiny_checkpoint,
        run={"steps": 3},
        model={"device": "cpu"},
        checkpoint={"every_steps": 1},
        evaluation={"verdict_pairs": 0, "bootstrap_resamples": 100},
    )


@pytest.mark.parametrize("name", ["step_000001.arrow", "metrics.jsonl", "ledger.jsonl", "model", "hits.npz"])
def test_a_disk_that_fills_up_costs_no_finished_step(
    name: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = load_config(config_file), tmp_path / "run"
    steps: list[int] = []
    real_open, real_mkdir = io.open, os.mkdir

    def refuse(path: Any) -> None:
        if steps and isinstance(path, str | os.PathLike) and name in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def full_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse(path)
        return real_open(path, mode, *arguments, **options)

    def full_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        refuse(path)
        real_mkdir(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", full_open)
        patch.setattr(os, "mkdir", full_mkdir)
        with pytest.raises(OutputError, match=rf"{name}: cannot be written .No space left on device.; free space"):
            train(config, run, on_step=lambda result: steps.append(result.step))
    assert sorted(path.name for path in (run / "checkpoints").glob("step_????????"))[-1] == f"step_{steps[-1]:08d}"
    results = train(config, run)  # the same command, with room again
    assert results.method("trained").optimizer_steps == 3
    rows = [row["step"] for row in MetricsLog(run / "metrics.jsonl").rows() if "loss/dml" in row]
    assert rows == [1, 2, 3]


def test_a_run_whose_directory_goes_ends_and_does_not_make_it_again(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def remove(result: StepResult) -> None:
        shutil.rmtree(run)

    with pytest.raises(OutputError, match=f"{run}: was removed, or another process took it over"):
        train(load_config(config_file), run, on_step=remove)
    assert not run.exists()


def contents(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != OWNER_NAME
    }


def test_the_same_command_twice_trains_once(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(config_file), "run.steps=100000", "--run-dir", str(run)]
    command = [sys.executable, "-m", "saga_dist", *arguments]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "latest").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # so that the directory changes only if the second one changes it
        before = contents(run)
        monkeypatch.setattr(sys, "argv", ["saga-dist", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        assert f"pid {first.pid}, started 20" in line
        assert contents(run) == before
    finally:
        first.kill()
        first.wait()
    with owned_directory(run, option="--run-dir"):  # at once
        pass
