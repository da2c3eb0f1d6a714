"""Reads metrics.jsonl while a run writes it; each read parses only what was added since."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from saga_dist.errors import CheckpointError


class GrowingRows:
    """Metrics by step of a file that another process appends to, or replaces when it resumes.

    Args:
        path: path of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = self._offset = 0
        self._steps: dict[int, dict[str, float]] = {}

    def read(self) -> Mapping[int, Mapping[str, float]]:
        """Returns the metrics of every step that the file has, by number; all rows of a step are merged.

        Raises:
            CheckpointError: the file cannot be read, or a whole line is not a row.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:  # a resume replaced the file
                    self._inode, self._offset, self._steps = status.st_ino, 0, {}
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CheckpointError(f"cannot be read ({error.strerror})", where=str(self._path)) from error
        whole = added[: added.rfind(b"\n") + 1]  # the last line may be half written
        for line in whole.splitlines():
            self._add(line)
        self._offset += len(whole)
        return self._steps

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            self._steps.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("holds a line that is not a row", where=str(self._path), fix="delete it") from error
