"""Reads MATLAB 5 files in a separate process.

SciPy's reader ends the whole process (segmentation fault) for some damaged files, and a compressed file can unpack to
any size. Therefore this file is also a script, whose failure does no harm: ``python matlab.py FILE FIELD...`` writes
the needed content as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEADLINE_S = 300
_MEMORY_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class Annotations:
    """Content of an annotation file."""

    fields: tuple[str, ...]
    """Names of the fields of the struct array ``annotations``; empty without such an array."""
    columns: dict[str, list[Any]]
    """The requested fields that exist: a text, a number or None for each element of ``annotations``."""
    class_names: tuple[str, ...]
    """Values of the cell array ``class_names``; empty without such an array."""


def read_annotations(path: Path, fields: Sequence[str]) -> Annotations:
    """Returns the annotations in a file.

    Args:
        path: file to read.
        fields: names of the requested fields; their order differs between files.

    Raises:
        DataError: the file cannot be read, or not within time and memory limits.
    """
    from saga_dist.data.layouts.listing import read_list_bytes
    from saga_dist.errors import DataError

    read_list_bytes(path)  # raises a precise error for a missing or special file
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__, str(path), *fields],
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        if isinstance(error, subprocess.TimeoutExpired):
            reason = f"not read after {_DEADLINE_S} s"
        elif error.returncode < 0:
            reason = f"the reader died of signal {-error.returncode}"
        else:
            reason = " ".join(error.stderr.strip().split("\n")[-1].split())
        raise DataError(
            f"not a MATLAB 5 file ({reason})", where=str(path), fix="restore it from the original"
        ) from error
    found = json.loads(done.stdout)
    return Annotations(tuple(found["fields"]), found["columns"], tuple(found["class_names"]))


def _main(path: str, fields: Sequence[str]) -> None:
    import resource

    import numpy as np
    from scipy.io import loadmat

    def plain(value: object) -> str | float | None:
        if isinstance(value, np.generic):
            value = value.item()
        return value if isinstance(value, str | int | float) else None

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    content = loadmat(path, squeeze_me=True)
    annotations = content.get("annotations")
    names: tuple[str, ...] = ()
    columns: dict[str, list[Any]] = {}
    if isinstance(annotations, np.ndarray) and annotations.dtype.names:
        names = annotations.dtype.names
        rows = np.atleast_1d(annotations)
        columns = {field: [plain(value) for value in rows[field].tolist()] for field in fields if field in names}
    class_names = np.atleast_1d(content.get("class_names", [])).tolist()
    json.dump(
        {"fields": names, "columns": columns, "class_names": [" ".join(str(name).split()) for name in class_names]},
        sys.stdout,
    )


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
