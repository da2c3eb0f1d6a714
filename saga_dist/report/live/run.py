"""State of a run: its steps, workers, last recorded group and end, read again and again from its directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from saga_dist.config import RunConfig, load_run_config
from saga_dist.errors import DataError
from saga_dist.metrics.group_words import shown_group
from saga_dist.report.live.heartbeat import Heartbeat, HeartbeatObserver, Pulse
from saga_dist.report.live.rows import GrowingRows
from saga_dist.retrieval.results import RESULTS_NAME, Results
from saga_dist.runtime.ray.scale import RunView
from saga_dist.utils.stages import stage

if TYPE_CHECKING:
    from saga_dist.types import ScoredGroup

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class LiveRun:
    """State of a run at one time."""

    path: Path
    """Run directory."""
    config: RunConfig
    """Resolved configuration."""
    steps: Mapping[int, Mapping[str, float]]
    """Metrics by optimizer step, counted from 1."""
    heartbeat: Heartbeat
    """The process that writes to the directory."""
    workers: RunView | None
    """Workers of a run in progress on Ray; None without."""
    group: tuple[int, ScoredGroup] | None
    """Step and group that were recorded last; None before the first, or when the run records none."""
    results: Results | None
    """Content of ``results.json``; None before the run has finished."""

    @property
    def step(self) -> int:
        """Number of the last optimizer step; 0 before the first."""
        return max(self.steps, default=0)

    @property
    def has_all_steps(self) -> bool:
        """True when the last configured step was taken."""
        return self.step >= self.config.run.steps

    @property
    def is_finished(self) -> bool:
        """True when a training has its results, or a recording all its steps, and its process has ended."""
        only_records = not (self.path / "checkpoints").is_dir()
        has_ended = self.heartbeat.pulse is Pulse.NONE
        return has_ended and self.has_all_steps and (self.results is not None or only_records)

    def recent(self, name: str, num_steps: int) -> list[tuple[int, float]]:
        """Returns step and value of a metric in the last steps that have it, the oldest first.

        Args:
            name: name of the metric.
            num_steps: largest number of values.
        """
        newest_first = ((step, self.steps[step]) for step in sorted(self.steps, reverse=True))
        return list(islice(((step, row[name]) for step, row in newest_first if name in row), num_steps))[::-1]


class RunWatcher:
    """Reads the state of a run; nothing is written, and no process is asked.

    Args:
        path: run directory.

    Raises:
        ConfigError: the directory holds no run.
        CheckpointError: ``config.json`` is not valid JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._config = path, load_run_config(path)
        self._rows, self._heartbeat = GrowingRows(path / "metrics.jsonl"), HeartbeatObserver(path)
        self._group: tuple[int, ScoredGroup] | None = None

    def read(self) -> LiveRun:
        """Returns the present state.

        Raises:
            CheckpointError: ``metrics.jsonl`` cannot be read.
            DataError: ``results.json`` is damaged.
        """
        heartbeat, steps = self._heartbeat.read(), self._rows.read()
        saved = self._path / RESULTS_NAME
        self._group = self._last_group(max(steps, default=0))
        return LiveRun(
            path=self._path,
            config=self._config,
            steps=steps,
            heartbeat=heartbeat,
            workers=self._workers() if heartbeat.pulse is not Pulse.NONE else None,
            group=self._group,
            results=Results.load(saved) if saved.is_file() else None,
        )

    def read_certain(self) -> LiveRun:
        """Returns the state as soon as it is certain whether a process writes to the directory.

        On the machine of the run that takes no time, on another one until the next heartbeat, or its absence.
        """
        run = self.read()
        if run.heartbeat.pulse is Pulse.UNKNOWN:
            stage("waiting for a heartbeat of the run")
        while run.heartbeat.pulse is Pulse.UNKNOWN:
            time.sleep(_POLL_S)
            run = self.read()
        return run

    def _workers(self) -> RunView | None:
        try:
            return RunView.model_validate_json((self._path / "workers.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _last_group(self, step: int) -> tuple[int, ScoredGroup] | None:
        """Returns the group that stands for a step, or the one read before where the step has no recording."""
        from saga_dist.wire import read_recording, recording_path  # imports torch

        if self._group is not None and self._group[0] == step:
            return self._group
        path = recording_path(self._path / "rollouts", step)
        try:
            group = shown_group(read_recording(path)) if path.is_file() else None
        except DataError:  # written by a newer version; the view has room for the rest
            return self._group
        return self._group if group is None else (step, group)
