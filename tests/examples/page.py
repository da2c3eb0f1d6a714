"""The commands of the page of examples, run as a reader types them."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "examples.md"


def words_of(script: str) -> list[str]:
    """Returns the words after ``python`` of the page's one command that runs a script of ``docs/examples``."""
    lines = PAGE.read_text("utf-8").splitlines()
    (command,) = [line for line in lines if line.startswith(f"python docs/examples/{script} ")]
    return shlex.split(command)[1:]


def run_command(script: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs that command in this process, in the current folder; returns the names that the script leaves."""
    file, *arguments = words_of(script)
    monkeypatch.setattr(sys, "argv", [file, *arguments])
    return runpy.run_path(str(ROOT / file), run_name="__main__")
