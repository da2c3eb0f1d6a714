"""Every command that writes, on a disk that is full or read-only and without a place: one line, before the work."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.rows_files import TABLE

from saga_dist.cli.main import COMMANDS, main

DIRECTORIES = {
    "train": "train run.toml --run-dir {out}",
    "rollout": "rollout run.toml --run-dir {out}",
    "demo": "demo --runtime serial --engine transformers --run-dir {out}",
    "sweep": "sweep table.toml --out {out}",
    "export": "export encoder --out {out}",
    "index": "index e.arrow --out {out}",
    "check-gpu": "check-gpu --out {out}",
}
"""Commands that create their output directory."""
FILES = {
    "init": "init {out} --data classes",
    "embed": "embed encoder photos --out {out}.arrow",
    "evaluate": "evaluate runs/mine --json {out}",
    "evaluate --encoder": "evaluate run.toml --encoder hf:nowhere --json {out}",
    "report": "report runs/mine --out {out}",
    "rollouts": "rollouts runs/mine --out {out}",
    "estimate": "estimate run.toml --json {out}",
    "bench": "bench start --json {out}",
    "manifest": "manifest run.toml --out {out}",
    "search": "search index photos/a.jpg --sheet {out}.png",
    "evidence collect --json": "evidence collect sweep --json {out}",
    "evidence collect --figure": "evidence collect sweep --figure {out}",
    "evidence show": "evidence show runs/mine --json {out}",
    "evidence screen": "evidence screen run.toml --json {out}",
}
"""Commands that write a file."""
READERS = {"config", "docs", "doctor", "metrics", "scale", "watch"}
"""Commands that write no output of their own: ``scale`` leaves an order in the directory of a running run."""


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], str]:
    """Runs a command line among inputs that end every command that looks at them; returns its one line of error."""
    write_tiny_config(tmp_path / "run.toml", tiny_checkpoint)
    (tmp_path / "table.toml").write_text(TABLE)
    inputs = ("photos/a.jpg", "classes/owl/a.jpg", "classes/wren/a.jpg", "encoder/manifest.json")
    for name in (*inputs, "encoder/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path)

    def act(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["saga-dist", *line.split()])
        with pytest.raises(SystemExit) as end:
            main()
        (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        assert end.value.code == 2, error
        return error

    return act


def breaks(monkeypatch: pytest.MonkeyPatch, place: Path, number: int) -> None:
    """Lets the operating system refuse to write below a folder."""
    real_open, real_os_open, real_mkdir = io.open, os.open, os.mkdir

    def refuse(path: Any) -> None:
        if isinstance(path, str | os.PathLike) and place in Path(path).absolute().parents:
            raise OSError(number, os.strerror(number), os.fspath(path))

    def failing_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse(path)
        return real_open(path, mode, *arguments, **options)

    def failing_os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return real_os_open(path, flags, *arguments, **options)

    def failing_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        refuse(path)
        real_mkdir(path, *arguments, **options)

    monkeypatch.setattr(io, "open", failing_open)
    monkeypatch.setattr(os, "open", failing_os_open)
    monkeypatch.setattr(os, "mkdir", failing_mkdir)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("command", [*DIRECTORIES.values(), *FILES.values()], ids=[*DIRECTORIES, *FILES])
def test_an_output_that_cannot_be_written_is_one_line(
    command: str, number: int, run: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaks(patch, tmp_path / "place", number)
        error = run(command.format(out=tmp_path / "place" / "out"))
    assert f"{tmp_path / 'place' / 'out'}" in error
    assert f"cannot be written ({os.strerror(number)})" in error
    assert ", or choose another " in error
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("command", [FILES[name] for name in FILES if name != "embed"])  # embed makes the folder
def test_a_folder_that_was_removed_is_one_line(command: str, run: Callable[[str], str], tmp_path: Path) -> None:
    error = run(command.format(out="gone/out"))
    assert f"{tmp_path / 'gone' / 'out'}" in error
    assert "cannot be written (No such file or directory); its folder does not exist, or choose another " in error


@pytest.mark.parametrize("command", [*DIRECTORIES.values(), *FILES.values()], ids=[*DIRECTORIES, *FILES])
def test_a_path_below_a_file_is_one_line(command: str, run: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = run(command.format(out="file/out"))
    assert "; a part of its path is a file, or choose another " in error
    assert (tmp_path / "file").read_text() == "mine"


def test_no_command_is_missing_here() -> None:
    named = {command.split()[0] for command in (*DIRECTORIES.values(), *FILES.values())} | READERS
    assert {command.__name__.replace("_", "-") for command in COMMANDS} <= named
