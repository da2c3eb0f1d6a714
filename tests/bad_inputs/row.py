"""One row of the table of bad inputs, the place where it runs, and the check that all rows share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from saga_dist.cli.main import main
from saga_dist.errors import UserError

AREAS = (
    "command_line",
    "api",
    "watch",
    "reference",
    "configuration",
    "sampling",
    "data",
    "image_files",
    "files",
    "recordings",
    "encoder_folders",
    "cluster",
    "gpus",
    "gpu_check",
    "estimates",
    "images",
    "completions",
    "steps",
    "engines",
    "pages",
    "trained_part",
    "hub",
    "packed_data",
    "search_service",
)
"""The parts of the table: one module ``rows_<area>`` with a list ``ROWS`` each."""

MOST_OF_A_KIND = 8
"""Rows of one kind; more of them would pad the table."""


@dataclass(frozen=True)
class Workspace:
    """What a row works with.

    Args:
        folder: an empty folder of the row's own, which is also the working directory.
        model: folder of a tiny random Qwen3-VL.
        write_config: writes ``run.toml`` with the settings given by section added to a tiny run, and returns its path.
        patch: for environment variables and attributes; undone after the row.
    """

    folder: Path
    model: Path
    write_config: Callable[..., Path]
    patch: pytest.MonkeyPatch

    def image_folder(self, name: str = "data", *, classes: int = 8, images: int = 4, side: int = 32) -> Path:
        """Writes ``classes`` folders of ``images`` different RGB images, ``side`` pixels square; returns their root."""
        root = self.folder / name
        for number in range(classes * images):
            path = root / f"class_{number // images:02d}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return root


@dataclass(frozen=True)
class BadInput:
    """One bad input and what becomes of it.

    Args:
        name: what is wrong, in words; the test's identifier.
        kind: family of mistakes that have one cause.
        act: a command line of ``saga-dist`` (``{folder}`` and ``{model}`` are filled in), or a function.
        says: parts of the line that the user reads: what, where, expected, fix.
        prepare: makes the input in the workspace.
        outcome: "error" for one line and exit code 2 (a ``UserError`` of a function); "note" for a warning or a count
            in what is printed, logged or returned.
    """

    name: str
    kind: str
    act: str | Callable[[Workspace], Any]
    says: tuple[str, ...]
    prepare: Callable[[Workspace], Any] = field(default=lambda workspace: None)
    outcome: Literal["error", "note"] = "error"


@dataclass(frozen=True)
class Outcome:
    """What a row led to: the exit code (2 for a ``UserError`` of a function), the error's line, and all text."""

    code: int
    errors: tuple[str, ...]
    text: str


def check(row: BadInput, workspace: Workspace, capture: pytest.CaptureFixture[str], logged: Callable[[], str]) -> None:
    """Runs a row and asserts its outcome; an exception that is no ``UserError`` passes through and fails the test.

    Args:
        row: the row.
        workspace: the row's own workspace.
        capture: pytest's ``capsys``.
        logged: returns what was logged so far.
    """
    row.prepare(workspace)
    outcome = _run(row.act, workspace, capture, logged)
    assert "Traceback" not in outcome.text
    if row.outcome == "error":
        assert outcome.code == 2, outcome.text
        assert len(outcome.errors) == 1, outcome.text
        assert "\n" not in outcome.errors[0]
        missing = [part for part in row.says if part not in outcome.errors[0]]
    else:
        assert outcome.code == 0, outcome.text
        missing = [part for part in row.says if part not in outcome.text]
    assert not missing, outcome.text


def _run(
    act: str | Callable[[Workspace], Any],
    workspace: Workspace,
    capture: pytest.CaptureFixture[str],
    logged: Callable[[], str],
) -> Outcome:
    if callable(act):
        try:
            returned = act(workspace)
        except UserError as error:
            return Outcome(error.exit_code, (str(error),), str(error))
        return Outcome(0, (), f"{returned}\n{capture.readouterr().out}\n{logged()}")
    arguments = shlex.split(act.format(folder=workspace.folder, model=workspace.model))
    workspace.patch.setattr(sys, "argv", ["saga-dist", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    printed = capture.readouterr()
    lines = tuple(line for line in printed.err.splitlines() if line.lower().startswith("error: "))
    return Outcome(code, lines, f"{printed.out}\n{printed.err}\n{logged()}")
