"""Columns and schemas of the wire format: conversion of arrays to Arrow columns and back, with checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from saga_dist.errors import WireError

VERSION = "5"
"""Version of the schemas of all records."""
_RECORD_KEY, _VERSION_KEY = b"saga_dist.record", b"saga_dist.version"
_WIRE_TYPES = {torch.bfloat16: pa.uint16(), torch.float32: pa.float32()}


def field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    """Returns a field of a schema, which has no empty entries unless it is ``nullable``."""
    return pa.field(name, kind, nullable=nullable)


def matrix_type(kind: pa.DataType, width: int) -> pa.DataType:
    """Returns the type of a column that holds one [N, width] matrix per row; N may differ from row to row."""
    # Items are nullable in the type, because pickling (by Ray) makes the items of a fixed-size list nullable.
    return pa.large_list(pa.list_(kind, width))


def record_schema(record: str, fields: Sequence[pa.Field], version: str = VERSION) -> pa.Schema:
    """Returns a schema with the name of the record and the version in its metadata."""
    return pa.schema(fields, metadata={_RECORD_KEY: record.encode(), _VERSION_KEY: version.encode()})


def version_of(schema: pa.Schema) -> str:
    """Returns the version in a schema's metadata; empty when there is none."""
    return (schema.metadata or {}).get(_VERSION_KEY, b"").decode("utf-8", "replace")


def to_batch(schema: pa.Schema, columns: dict[str, Any]) -> pa.RecordBatch:
    """Returns a batch from Arrow arrays or Python values by column name.

    Raises:
        WireError: a value does not fit the type of its column.
    """
    arrays = []
    for entry in schema:
        column = columns[entry.name]
        try:
            arrays.append(column if isinstance(column, pa.Array) else pa.array(column, type=entry.type))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
            raise WireError(one_line(error), where=f"column {entry.name}", expected=str(entry.type)) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def matrix_column(values_NW: torch.Tensor, *, where: str) -> pa.Array:
    """Returns a column of one row that holds a matrix; a contiguous tensor on the CPU is not copied.

    Args:
        values_NW: [N, W] bfloat16 or float32.
        where: name of the record, for error messages.

    Raises:
        WireError: the tensor has another dtype or no columns.
    """
    if values_NW.dtype not in _WIRE_TYPES:
        raise WireError(f"values of {values_NW.dtype}", where=where, expected="torch.bfloat16 or torch.float32")
    num_rows, width = values_NW.shape
    if width == 0:
        raise WireError(f"values of shape {tuple(values_NW.shape)}", where=where, expected="at least one column")
    plain = values_NW.detach().cpu().contiguous()
    bits = plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain
    kind = matrix_type(_WIRE_TYPES[values_NW.dtype], width)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(bits.numpy().reshape(-1)), type=kind.value_type)
    return pa.LargeListArray.from_arrays(pa.array([0, num_rows], pa.int64()), rows, type=kind)


def matrix_value(column: pa.Array, width: int) -> torch.Tensor:
    """Returns the matrix in a column of one row, [N, width] bfloat16 or float32, as a view of the column's memory.

    Raises:
        WireError: the column has empty entries.
    """
    # DLPack and not numpy, because torch accepts read-only memory from it without a copy and without a warning.
    values = column.flatten().flatten()
    if values.null_count:
        raise WireError("column values has empty entries", where="tensor batch", expected="a number per entry")
    flat = torch.from_dlpack(values)
    return (flat.view(torch.bfloat16) if flat.dtype == torch.uint16 else flat).view(-1, width)


def matrix_parameters(batch: pa.RecordBatch, record: str) -> tuple[pa.DataType, int]:
    """Returns value type and width of the column ``values``, in which the schemas of tensor records differ.

    Raises:
        WireError: the batch holds another record or version, or its ``values`` are no matrices.
    """
    check_record(batch, record)
    kind = batch.schema.field("values").type if "values" in batch.schema.names else None
    inner = kind.value_type if kind is not None and pa.types.is_large_list(kind) else None
    if inner is None or not pa.types.is_fixed_size_list(inner) or inner.value_type not in _WIRE_TYPES.values():
        raise WireError(
            f"column values is {kind or 'missing'}",
            where=f"{record} batch",
            expected="matrices of uint16 (bfloat16) or float32",
        )
    return inner.value_type, inner.list_size


def optional_vector(values_N: torch.Tensor | None) -> pa.Array:
    """Returns a list column of one row with a vector as float32; the row is empty for None."""
    kind = pa.list_(pa.float32())
    if values_N is None:
        return pa.array([None], type=kind)
    values = pa.array(values_N.detach().cpu().to(torch.float32).contiguous().numpy())
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values, type=kind)


def nested_once(rows: Sequence[np.ndarray], dtype: Any) -> pa.Array:
    """Returns a list column from one array per row; every bit is kept, NaN payloads included."""
    flat = np.concatenate([np.zeros(0, dtype), *(np.asarray(row, dtype) for row in rows)])
    return lists([len(row) for row in rows], pa.array(flat))


def nested(rows: Sequence[Sequence[np.ndarray]], dtype: Any) -> pa.Array:
    """Returns a column of lists of lists from several arrays per row."""
    return lists([len(row) for row in rows], nested_once([array for row in rows for array in row], dtype))


def nested_value(column: pa.Array, row: int, *, zero_copy: bool) -> tuple[np.ndarray, ...]:
    """Returns the arrays of one row of a column that ``nested`` made.

    Args:
        column: the column.
        row: index of the row.
        zero_copy: True for read-only views of the column's memory, which Arrow cannot give for booleans.
    """
    inner = column[row].values
    return tuple(inner[index].values.to_numpy(zero_copy_only=zero_copy) for index in range(len(inner)))


def lists(lengths: Sequence[int], values: pa.Array) -> pa.Array:
    """Returns a list column that divides ``values`` into consecutive lists of these lengths."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(values.type))


def check_record(batch: pa.RecordBatch, record: str, version: str = VERSION) -> None:
    """Checks the name of the record and the version in a batch's metadata.

    Raises:
        WireError: one of them differs.
    """
    name = (batch.schema.metadata or {}).get(_RECORD_KEY, b"").decode("utf-8", "replace")
    found = version_of(batch.schema)
    if name != record:
        raise WireError(f"the batch holds {name or 'no record of this package'}", where="Arrow batch", expected=record)
    if found != version:
        raise WireError(
            f"version {found or 'missing'}",
            where=f"{record} batch",
            expected=f"version {version}",
            fix="read it with the version of saga_dist that wrote it",
        )


def check_schema(batch: pa.RecordBatch, schema: pa.Schema) -> None:
    """Checks record, version, names, types and empty entries of a batch's columns.

    Raises:
        WireError: the batch does not have the schema.
    """
    record = (schema.metadata or {})[_RECORD_KEY].decode()
    check_record(batch, record, version_of(schema))
    if batch.schema.names != schema.names:
        raise WireError(
            f"columns {', '.join(batch.schema.names)}", where=f"{record} batch", expected=", ".join(schema.names)
        )
    for own, other in zip(schema, batch.schema, strict=True):
        if own.type != other.type:
            raise WireError(f"column {own.name} is {other.type}", where=f"{record} batch", expected=str(own.type))
        if not own.nullable and batch.column(own.name).null_count:
            raise WireError(f"column {own.name} has empty entries", where=f"{record} batch", expected="a value per row")


def single_row(batch: pa.RecordBatch, schema: pa.Schema) -> dict[str, Any]:
    """Returns the columns of a one-row batch as Python values by name, without the columns that hold tensors.

    Raises:
        WireError: the batch does not have the schema, or not one row.
    """
    check_schema(batch, schema)
    record = (schema.metadata or {})[_RECORD_KEY].decode()
    if batch.num_rows != 1:
        raise WireError(f"{batch.num_rows} rows", where=f"{record} batch", expected="one")
    tensors = ("values", "attention_a", "attention_b", "replayed")
    return {name: batch.column(name)[0].as_py() for name in schema.names if name not in tensors}


def one_line(error: BaseException) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split())
