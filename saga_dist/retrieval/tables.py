"""Embedding files in Arrow or Parquet format, and tables of ids.

An embedding file has one row per image: ``id`` (path relative to the folder), ``size_bytes``, ``mtime_ns`` and
``values`` (float32 [E], l2-normalised). The schema's metadata describe the encoder and the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saga_dist.errors import DataError
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.utils.atomic_io import replaced_file
from saga_dist.utils.output_files import file_to_write

FORMAT_VERSION = 1
METRIC = "cosine"
SUFFIXES = (".arrow", ".parquet")
_KEY = b"saga_dist.embeddings"
_ROWS_PER_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Source:
    """Origin of the embeddings of a file."""

    model: ModelIdentity
    """Encoder of the embeddings."""
    root: str
    """Absolute path of the folder of images, to which the ids are relative."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingTable:
    """Embeddings of images, and the state of each file when it was read.

    Raises:
        DataError: dtypes or shapes do not fit.
    """

    source: Source
    """Encoder and folder of the embeddings."""
    ids: tuple[str, ...]
    """I paths relative to the folder, with forward slashes."""
    sizes_bytes_I: np.ndarray
    """int64 [I], size of each file in bytes."""
    mtimes_ns_I: np.ndarray
    """int64 [I], modification time of each file in nanoseconds since 1970."""
    values_IE: np.ndarray
    """float32 [I, E], embeddings, l2-normalised."""

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.values_IE.dtype != np.float32 or self.values_IE.ndim != 2 or len(self.values_IE) != count:
            raise DataError(
                f"embeddings are {self.values_IE.dtype} {self.values_IE.shape}", expected=f"float32 [{count}, E]"
            )
        if self.sizes_bytes_I.shape != (count,) or self.mtimes_ns_I.shape != (count,):
            raise DataError("sizes and times of other images", expected=f"{count} of each")


def check_suffix(path: Path) -> None:
    """Checks that the suffix of a file's name is that of a supported format.

    Raises:
        DataError: the suffix is neither .arrow nor .parquet.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"unknown suffix {path.suffix!r}", where=str(path), expected=" or ".join(SUFFIXES))


def write_embeddings(path: Path, table: EmbeddingTable) -> None:
    """Writes an embedding file atomically.

    Raises:
        DataError: the suffix is unknown.
        OutputError: the file cannot be written.
    """
    check_suffix(path)
    metadata = {
        "format_version": FORMAT_VERSION,
        "metric": METRIC,
        "model": table.source.model.to_json(),
        "root": table.source.root,
    }
    schema = _schema(table.values_IE.shape[1]).with_metadata({_KEY: json.dumps(metadata).encode()})
    with replaced_file(path, option="--out") as file:
        writer: Any = pq.ParquetWriter(file, schema) if path.suffix == ".parquet" else pa.ipc.new_file(file, schema)
        with writer:
            for batch in _batches(schema, table):
                writer.write_batch(batch)


def read_embeddings(path: Path) -> EmbeddingTable:
    """Returns the content of an embedding file.

    Raises:
        DataError: the file cannot be read, is not an embedding file, or has another version.
        CheckpointError: its metadata do not identify the encoder.
    """
    check_suffix(path)
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            with pa.memory_map(os.fspath(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        metadata = json.loads((table.schema.metadata or {})[_KEY])
        version = metadata["format_version"]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read ({_line(error)})", where=str(path), expected="a file that `saga-dist embed` wrote"
        ) from error
    if version != FORMAT_VERSION or metadata.get("metric") != METRIC:
        raise DataError(
            f"format version {version!r}, metric {metadata.get('metric')!r}",
            where=str(path),
            expected=f"{FORMAT_VERSION}, {METRIC}",
            fix="embed the images again",
        )
    return EmbeddingTable(
        source=Source(ModelIdentity.from_json(metadata.get("model"), where=str(path)), str(metadata.get("root"))),
        ids=tuple(table["id"].to_pylist()),
        sizes_bytes_I=table["size_bytes"].to_numpy(),
        mtimes_ns_I=table["mtime_ns"].to_numpy(),
        values_IE=_matrix(table["values"]),
    )


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Writes a table of ids, of which row i belongs to row i of the index."""
    table = pa.table({"id": pa.array(ids, pa.string())})
    with file_to_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_ids(path: Path) -> pa.ChunkedArray:
    """Returns the column of a table of ids; a row is read from the disk when it is accessed, as ``ids[i].as_py()``.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()["id"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({_line(error)})", where=str(path), fix="build the index again") from error


def _schema(width: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("size_bytes", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("values", pa.list_(pa.float32(), width), nullable=False),
        ]
    )


def _batches(schema: pa.Schema, table: EmbeddingTable) -> Iterator[pa.RecordBatch]:
    width = table.values_IE.shape[1]
    for start in range(0, len(table.ids), _ROWS_PER_BATCH):
        part = slice(start, start + _ROWS_PER_BATCH)
        flat = pa.array(np.ascontiguousarray(table.values_IE[part]).reshape(-1))
        columns = [
            pa.array(table.ids[part], pa.string()),
            pa.array(table.sizes_bytes_I[part]),
            pa.array(table.mtimes_ns_I[part]),
            pa.FixedSizeListArray.from_arrays(flat, width),
        ]
        yield pa.record_batch(columns, schema=schema)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column of fixed-size float lists as float32 [I, E]."""
    width = column.type.list_size
    matrix = np.empty((len(column), width), np.float32)
    start = 0
    for chunk in column.chunks:
        matrix[start : start + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, width)
        start += len(chunk)
    return matrix


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
