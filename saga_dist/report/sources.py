"""Reads the files of a run directory for the report; a run that is still training can be read too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_dist.config import RunConfig, load_run_config
from saga_dist.errors import CheckpointError
from saga_dist.metrics.log import MetricsLog
from saga_dist.retrieval.results import Results
from saga_dist.types import ScoredGroup
from saga_dist.wire import read_recording, recordings

MAX_RECORDINGS = 200
"""Largest number of recordings that a page reads; of a longer run, evenly spaced ones with the first and the last."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Files of a run directory."""

    path: Path
    """Run directory."""
    config: RunConfig
    """Resolved configuration."""
    rows: list[dict[str, float]]
    """Rows of ``metrics.jsonl``, without an incomplete last line."""
    results: Results | None
    """Content of ``results.json``; None before the run has finished."""
    versions: dict[str, str]
    """Package to version, as recorded in the saved encoder; empty before it is saved."""
    recordings: list[tuple[int, Path]]
    """(step counted from 1, file) of every recording, in order of the steps."""

    @property
    def has_model(self) -> bool:
        """True when the run has saved its encoder."""
        return (self.path / "model" / "manifest.json").is_file()


@dataclass(frozen=True, slots=True)
class RecordedGroup:
    """A scored group and the step that recorded it."""

    step: int
    """Step that consumed the group, counted from 1."""
    group: ScoredGroup

    @property
    def staleness(self) -> int:
        """Number of encoder versions between the generation of the group and its consumption."""
        return self.step - 1 - self.group.completions.encoder_version


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recorded groups of a run, from all or some of its recordings."""

    groups: list[RecordedGroup]
    """Groups in order of the steps."""
    num_read: int
    """Recordings that were read."""
    num_recordings: int
    """Recordings that could have been read."""


def open_run(path: Path) -> RunFiles:
    """Returns the files of a run directory.

    Args:
        path: run directory.

    Raises:
        ConfigError: the directory holds no run.
        CheckpointError: ``metrics.jsonl`` or ``model/config.json`` is damaged.
        DataError: ``results.json`` is damaged.
    """
    config = load_run_config(path)
    metrics, results = path / "metrics.jsonl", path / "results.json"
    return RunFiles(
        path=path,
        config=config,
        rows=MetricsLog(metrics).rows(allow_cut_tail=True) if metrics.exists() else [],
        results=Results.load(results) if results.exists() else None,
        versions=_versions(path / "model" / "config.json"),
        recordings=sorted(recordings(path / "rollouts").items()),
    )


def read_groups(run: RunFiles, *, step: int | None = None, limit: int = MAX_RECORDINGS) -> Recorded:
    """Returns recorded groups in order of the steps, from at most ``limit`` evenly spaced recordings.

    Args:
        run: files of the run.
        step: read the recording of this step only, counted from 1; None for all steps.
        limit: largest number of recordings to read.

    Raises:
        DataError: a recording is damaged.
        CheckpointError: the step was not recorded.
    """
    files = [(number, path) for number, path in run.recordings if step is None or number == step]
    if step is not None and not files:
        there = f"{run.recordings[0][0]} to {run.recordings[-1][0]}" if run.recordings else "none"
        raise CheckpointError(
            f"no recording of step {step}", where=str(run.path / "rollouts"), expected=f"a recorded step ({there})"
        )
    chosen = [files[index] for index in evenly(len(files), limit)]
    groups = [RecordedGroup(number, group) for number, path in chosen for group in read_recording(path)]
    return Recorded(groups, len(chosen), len(files))


def run_labels(paths: Sequence[Path]) -> list[str]:
    """Returns a label for each run: its directory's name, with as many parents as tell the runs apart.

    Args:
        paths: different run directories.
    """
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1)):
        labels = ["/".join(one[-length:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path.resolve()) for path in paths]


def evenly(total: int, limit: int) -> list[int]:
    """Returns at most ``limit`` evenly spaced integers of 0 .. total - 1.

    The first is 0 and, when ``limit`` is at least 2, the last is total - 1.
    """
    if total <= limit:
        return list(range(total))
    if limit <= 1:
        return [0][:limit]
    return [round(index * (total - 1) / (limit - 1)) for index in range(limit)]


def _versions(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        return {str(name): str(version) for name, version in content["versions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError("cannot be read", where=str(path), expected="a saved encoder's config.json") from error
