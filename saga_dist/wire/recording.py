"""Recordings: scored groups in Arrow IPC files, which are written atomically."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from saga_dist.errors import DataError, WireError
from saga_dist.types import ScoredGroup
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.wire.columns import one_line
from saga_dist.wire.groups import counts_from_zero, groups_from_batch, groups_to_batch
from saga_dist.wire.identity import RunIdentity, identity_in, with_identity

_NAME = re.compile(r"step_(\d+)\.arrow")
_FIX = "restore the file, or record the run again"


@dataclass(frozen=True, slots=True)
class Recording:
    """Content of a recording."""

    groups: tuple[ScoredGroup, ...]
    """Scored groups of one step."""
    identity: RunIdentity | None
    """Weights, data and code that made it; None in recordings of earlier versions."""


def write_recording(path: str | Path, groups: Sequence[ScoredGroup], identity: RunIdentity | None = None) -> None:
    """Writes scored groups to an Arrow IPC file; the file appears completely or not at all.

    Args:
        path: file to write.
        groups: scored groups of one step.
        identity: weights, data and code that made them; None when they are not known.

    Raises:
        WireError: a value does not fit its column.
        OutputError: the file cannot be written.
    """
    batch = groups_to_batch(groups)
    sink = pa.BufferOutputStream()
    schema = with_identity(batch.schema, identity)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    write_atomic(Path(path), memoryview(sink.getvalue()))


def recording_path(folder: Path, step: int) -> Path:
    """Returns the file of a step's recording in a run's folder ``rollouts``, which need not exist.

    Args:
        folder: the folder.
        step: the step, counted from 1.
    """
    return folder / f"step_{step:06d}.arrow"


def recordings(folder: Path) -> dict[int, Path]:
    """Returns the recordings in a run's folder ``rollouts`` by step, counted from 1.

    Files of earlier versions have their step counted from 0 in their name. A run that began with such a version and
    went on with this one may have a step twice; the present version's file is taken.
    """
    present, earlier = dict[int, Path](), dict[int, Path]()
    for path in folder.glob("step_*.arrow"):
        if (found := _NAME.fullmatch(path.name)) is None:
            continue
        if _is_earlier(path):
            earlier[int(found[1]) + 1] = path
        else:
            present[int(found[1])] = path
    return earlier | present


def _is_earlier(path: Path) -> bool:
    """Returns True for a file of an earlier version; False for one whose version cannot be read, as reading it says."""
    try:
        with path.open("rb") as file:
            return counts_from_zero(pa.ipc.open_file(file).schema)
    except (OSError, pa.ArrowException):
        return False


def read_recording(path: str | Path) -> list[ScoredGroup]:
    """Returns the scored groups of a recording; raises the errors of ``open_recording``."""
    return list(open_recording(path).groups)


def open_recording(path: str | Path) -> Recording:
    """Returns the content of a recording.

    Raises:
        DataError: the file is missing or damaged, or holds another record or version.
    """
    with _named_file(Path(path)):
        # Read and not mapped, because a mapped file that is truncated later kills the process.
        reader = pa.ipc.open_file(pa.py_buffer(Path(path).read_bytes()))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        groups = tuple(group for batch in batches for group in groups_from_batch(batch))
        return Recording(groups, identity_in(reader.schema))


def check_recording(path: Path) -> None:
    """Checks that a file is a recording whose version can be read, without reading its groups.

    Raises:
        DataError: it is not.
    """
    with _named_file(path), path.open("rb") as file:
        schema = pa.ipc.open_file(file).schema
        columns = [pa.array([], column.type) for column in schema]
        groups_from_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


@contextmanager
def _named_file(path: Path) -> Iterator[None]:
    """Converts what reading a recording raises to a DataError that names the file: the user has chosen it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read the recording ({one_line(error)})", where=str(path), fix=_FIX) from error
    except WireError as error:
        raise DataError(str(error), where=str(path), fix=_FIX) from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"not a recording, or a damaged one ({one_line(error)})", where=str(path), fix=_FIX) from error
