"""The recordings of a run directory, by their file names."""

from __future__ import annotations

import re
from pathlib import Path

from saga_dist.errors import DataError

RECORDINGS_NAME = "rollouts"
"""Folder of the recordings in a run directory."""
_FILE_NAME = re.compile(r"step_(\d+)\.arrow")


def recorded_steps(run_dir: Path) -> list[int]:
    """Returns the recorded steps of a run directory, counted from 0, in order.

    Raises:
        DataError: there are none.
    """
    folder = run_dir / RECORDINGS_NAME
    matches = [_FILE_NAME.fullmatch(path.name) for path in folder.glob("step_*.arrow")]
    steps = sorted(int(match[1]) for match in matches if match)
    if not steps:
        raise DataError(
            "no recording", where=str(folder), expected="step_*.arrow", fix="record with rollout.record = true"
        )
    return steps


def not_recorded(run_dir: Path, step: int) -> DataError:
    """Returns the error for a step that a recording does not have.

    Args:
        run_dir: directory of the recorded run.
        step: the step, counted from 0.
    """
    path = run_dir / RECORDINGS_NAME / f"step_{step:06d}.arrow"
    return DataError(f"step {step} was not recorded", where=str(path), fix=f"set run.steps = {step}")
