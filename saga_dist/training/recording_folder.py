"""The recordings of a run directory, by step."""

from __future__ import annotations

from pathlib import Path

from saga_dist.errors import DataError

RECORDINGS_NAME = "rollouts"
"""Folder of the recordings in a run directory."""


def recorded_files(run_dir: Path) -> dict[int, Path]:
    """Returns the recordings of a run directory by step, counted from 1.

    Raises:
        DataError: there are none.
    """
    from saga_dist.wire import recordings  # imports torch

    folder = run_dir / RECORDINGS_NAME
    files = recordings(folder)
    if not files:
        raise DataError(
            "no recording", where=str(folder), expected="step_*.arrow", fix="record with rollout.record = true"
        )
    return files


def not_recorded(run_dir: Path, step: int) -> DataError:
    """Returns the error for a step that a recording does not have.

    Args:
        run_dir: directory of the recorded run.
        step: the step, counted from 1.
    """
    from saga_dist.wire import recording_path  # imports torch

    path = recording_path(run_dir / RECORDINGS_NAME, step)
    return DataError(f"step {step} was not recorded", where=str(path), fix=f"set run.steps = {step - 1}")
