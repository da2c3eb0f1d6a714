"""Writes metrics.jsonl, one JSON object per step with names ``stage/quantity_unit``; a resume drops later rows.

All metrics pass through ``MetricsLog.write``, which writes the file first, then every sink (TensorBoard, …). On resume,
the rows after the checkpoint are dropped, so that each step has one row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saga_dist.errors import CheckpointError
from saga_dist.metrics.group_words import GroupSample
from saga_dist.metrics.sinks import MetricSink
from saga_dist.types import StepResult
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.output_files import append_line


class Stopwatch:
    """Adds up the wall time of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds by phase, summed over all uses of the phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the block to ``seconds[name]``."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


class JsonLines:
    """A file with one JSON object per line, each with a ``step``; every row is flushed when it is written.

    Args:
        path: path of the file, which is created with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """Path of the file."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends one row, completely or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        append_line(self.path, json.dumps(row))

    def truncate(self, *, after_step: int) -> None:
        """Drops rows of steps greater than ``after_step``, and a last row that a crash left incomplete."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows(allow_cut_tail=True) if row["step"] <= after_step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def rows(self, *, allow_cut_tail: bool = False) -> list[dict[str, Any]]:
        """Returns all rows in file order.

        Args:
            allow_cut_tail: leave out a last line that is not JSON, as a crash during a write leaves it.

        Raises:
            CheckpointError: the file cannot be read, or a line is not JSON (with ``allow_cut_tail``: a line other than
                the last).
        """
        rows = []
        try:
            lines = self.path.read_text("utf-8").splitlines()
        except OSError as error:
            raise CheckpointError(
                f"cannot be read ({error.strerror})", where=str(self.path), fix="check the permissions and the disk"
            ) from error
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if allow_cut_tail and number == len(lines):
                    break
                raise CheckpointError("not a JSON row", where=f"{self.path}:{number}", fix="delete the line") from error
        return rows


class MetricsLog(JsonLines):
    """Step results in ``metrics.jsonl`` and in the configured sinks.

    Args:
        path: path of the file.
        sinks: receive the same rows; opened by ``truncate``, with which every attempt at a run begins.
    """

    def __init__(self, path: Path, sinks: Sequence[MetricSink] = ()) -> None:
        super().__init__(path)
        self._sinks = sinks

    @property
    def has_sinks(self) -> bool:
        """True when anything besides the file receives the metrics."""
        return bool(self._sinks)

    def write(self, result: StepResult) -> None:
        """Appends one row ``{"step": ..., "stage/quantity": ...}`` and passes the result to the sinks."""
        self.append({"step": result.step, **result.metrics})
        for sink in self._sinks:
            sink.write(result)

    def write_group(self, sample: GroupSample) -> None:
        """Passes a group of a step to the sinks; the group itself is in the recordings."""
        for sink in self._sinks:
            sink.write_group(sample)

    def truncate(self, *, after_step: int) -> None:
        """Drops the rows that ``JsonLines.truncate`` drops, and opens the sinks to continue after ``after_step``."""
        for sink in self._sinks:
            sink.open(after_step=after_step)
        super().truncate(after_step=after_step)
