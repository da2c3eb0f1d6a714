"""Arrow: the one format of the records between processes, on disk and in test fixtures.

Every record has a schema with a name and a version in its metadata; a batch of another record, version or column layout
is a ``WireError``, never a guess. One row is one record.

- bf16 travels as ``uint16`` (the same 16 bits), float32 as it is. Reading tensors and log-probabilities is zero-copy:
  they look into the Arrow buffer, which may lie in shared, read-only memory. Torch cannot mark a tensor read-only, so
  **never write in place into a tensor that came off the wire.** (Numpy arrays are marked, and refuse.)
- Texts are untrusted model output and may hold lone surrogates, which no UTF-8 string type takes; they travel as binary
  in UTF-8 with ``surrogatepass``, which is exact for every Python string (NUL included).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from saga_dist.errors import WireError
from saga_dist.files import write_atomic
from saga_dist.types import Completions, EncoderTokens, Grid, ImagePair, Sampling, ScoredGroup, TokenGradients

VERSION = "1"
_RECORD_KEY, _VERSION_KEY = b"saga_dist.record", b"saga_dist.version"
_WIRE_TYPES = {torch.bfloat16: pa.uint16(), torch.float32: pa.float32()}


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _matrix(kind: pa.DataType, width: int) -> pa.DataType:
    """A [N, width] matrix per row; N may differ from row to row."""
    # Items stay nullable in the type: pickling a fixed-size list (as Ray does) forgets that they were not.
    return pa.large_list(pa.list_(kind, width))


def _schema(record: str, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={_RECORD_KEY: record.encode(), _VERSION_KEY: VERSION.encode()})


def _tokens_schema(kind: pa.DataType, width: int) -> pa.Schema:
    return _schema(
        "EncoderTokens",
        [
            _field("pair_id", pa.string()),
            _field("values", _matrix(kind, width)),
            _field("lengths", pa.list_(pa.int64())),
            _field("grids", pa.list_(pa.list_(pa.int64(), 3))),
            _field("num_deepstack", pa.int64()),
            _field("encoder_version", pa.int64()),
        ],
    )


def _gradients_schema(kind: pa.DataType, width: int) -> pa.Schema:
    return _schema(
        "TokenGradients",
        [
            _field("pair_id", pa.string()),
            _field("values", _matrix(kind, width)),
            _field("attention_a", pa.list_(pa.float32()), nullable=True),
            _field("attention_b", pa.list_(pa.float32()), nullable=True),
            _field("negative_entropy", pa.float64()),
            _field("num_attended", pa.int64()),
            _field("loss", pa.float64()),
            _field("num_tokens", pa.int64()),
            _field("log_prob_gap", pa.float64()),
            _field("encoder_version", pa.int64()),
        ],
    )


GROUPS_SCHEMA = _schema(
    "ScoredGroup",
    [
        _field("pair_id", pa.string()),
        _field("image_a", pa.int64()),
        _field("image_b", pa.int64()),
        _field("label_a", pa.int64()),
        _field("label_b", pa.int64()),
        _field("num_completions", pa.int64()),
        _field("temperature", pa.float64()),
        _field("top_p", pa.float64()),
        _field("max_tokens", pa.int64()),
        _field("sampling_seed", pa.uint64()),
        _field("encoder_version", pa.int64()),
        _field("token_ids", pa.list_(pa.list_(pa.int32()))),
        _field("texts", pa.list_(pa.binary())),
        _field("log_probs", pa.list_(pa.list_(pa.float32()))),
        _field("finish_reasons", pa.list_(pa.string())),
        _field("verdicts", pa.list_(pa.bool_())),
        _field("rewards", pa.list_(pa.float32())),
        _field("advantages", pa.list_(pa.float32())),
        _field("describes_a", pa.list_(pa.list_(pa.bool_()))),
        _field("describes_b", pa.list_(pa.list_(pa.bool_()))),
    ],
)


# ---------------------------------------------------------------------- encoder tokens


def tokens_to_batch(tokens: EncoderTokens) -> pa.RecordBatch:
    """Returns one row with the tokens of a pair, without copying them when they are contiguous on the CPU.

    Raises:
        WireError: the tokens are neither bfloat16 nor float32.
    """
    values = _matrix_column(tokens.values_NW, where=f"pair {tokens.pair_id}")
    schema = _tokens_schema(values.type.value_type.value_type, tokens.values_NW.shape[1])
    return _batch(
        schema,
        {
            "pair_id": [tokens.pair_id],
            "values": values,
            "lengths": [tokens.lengths],
            "grids": [tokens.grids],
            "num_deepstack": [tokens.num_deepstack],
            "encoder_version": [tokens.encoder_version],
        },
    )


def tokens_from_batch(batch: pa.RecordBatch) -> EncoderTokens:
    """Returns the tokens in a one-row batch; ``values_NW`` looks into the batch's own memory (read-only by contract).

    Raises:
        WireError: not one row of this version's EncoderTokens.
        TokenError: lengths, grids and rows do not fit each other.
    """
    kind, width = _matrix_type(batch, "EncoderTokens")
    row = _single_row(batch, _tokens_schema(kind, width))
    grids: list[Grid] = [(frames, rows, columns) for frames, rows, columns in row["grids"]]
    return EncoderTokens(
        pair_id=row["pair_id"],
        values_NW=_matrix_value(batch.column("values"), width),
        lengths=tuple(row["lengths"]),
        grids=tuple(grids),
        num_deepstack=row["num_deepstack"],
        encoder_version=row["encoder_version"],
    )


# ---------------------------------------------------------------------- token gradients


def gradients_to_batch(gradients: TokenGradients) -> pa.RecordBatch:
    """Returns one row with the token gradients of a pair.

    Raises:
        WireError: the gradients are neither bfloat16 nor float32.
    """
    values = _matrix_column(gradients.values_NW, where=f"pair {gradients.pair_id}")
    schema = _gradients_schema(values.type.value_type.value_type, gradients.values_NW.shape[1])
    return _batch(
        schema,
        {
            "pair_id": [gradients.pair_id],
            "values": values,
            "attention_a": _optional_vector(gradients.attention_a_N),
            "attention_b": _optional_vector(gradients.attention_b_N),
            "negative_entropy": [gradients.negative_entropy],
            "num_attended": [gradients.num_attended],
            "loss": [gradients.loss],
            "num_tokens": [gradients.num_tokens],
            "log_prob_gap": [gradients.log_prob_gap],
            "encoder_version": [gradients.encoder_version],
        },
    )


def gradients_from_batch(batch: pa.RecordBatch) -> TokenGradients:
    """Returns the gradients in a one-row batch; its tensors look into the batch's own memory (read-only by contract).

    Raises:
        WireError: not one row of this version's TokenGradients.
    """
    kind, width = _matrix_type(batch, "TokenGradients")
    row = _single_row(batch, _gradients_schema(kind, width))
    attention_a, attention_b = (
        torch.from_dlpack(column.flatten()) if column.null_count == 0 else None
        for column in (batch.column("attention_a"), batch.column("attention_b"))
    )
    return TokenGradients(
        pair_id=row["pair_id"],
        values_NW=_matrix_value(batch.column("values"), width),
        attention_a_N=attention_a,
        attention_b_N=attention_b,
        negative_entropy=row["negative_entropy"],
        num_attended=row["num_attended"],
        loss=row["loss"],
        num_tokens=row["num_tokens"],
        log_prob_gap=row["log_prob_gap"],
        encoder_version=row["encoder_version"],
    )


# ---------------------------------------------------------------------- scored groups


def groups_to_batch(groups: Sequence[ScoredGroup]) -> pa.RecordBatch:
    """Returns one row per scored group, its pair, completions and sampling included.

    Raises:
        WireError: a value does not fit its column (a token id beyond 32 bits, a pair id with a lone surrogate).
    """
    completions = [group.completions for group in groups]
    samplings = [one.sampling for one in completions]
    for group in groups:
        _check_group(group)
    return _batch(
        GROUPS_SCHEMA,
        {
            "pair_id": [group.pair.pair_id for group in groups],
            "image_a": [group.pair.image_a for group in groups],
            "image_b": [group.pair.image_b for group in groups],
            "label_a": [group.pair.label_a for group in groups],
            "label_b": [group.pair.label_b for group in groups],
            "num_completions": [sampling.num_completions for sampling in samplings],
            "temperature": [sampling.temperature for sampling in samplings],
            "top_p": [sampling.top_p for sampling in samplings],
            "max_tokens": [sampling.max_tokens for sampling in samplings],
            "sampling_seed": [sampling.seed for sampling in samplings],
            "encoder_version": [one.encoder_version for one in completions],
            "token_ids": [one.token_ids for one in completions],
            "texts": [[text.encode("utf-8", "surrogatepass") for text in one.texts] for one in completions],
            "log_probs": _nested([one.log_probs for one in completions], np.float32),
            "finish_reasons": [one.finish_reasons for one in completions],
            "verdicts": [group.verdicts for group in groups],
            "rewards": _nested_once([group.rewards_G for group in groups], np.float32),
            "advantages": _nested_once([group.advantages_G for group in groups], np.float32),
            "describes_a": _nested([group.describes_a for group in groups], np.bool_),
            "describes_b": _nested([group.describes_b for group in groups], np.bool_),
        },
    )


def groups_from_batch(batch: pa.RecordBatch) -> list[ScoredGroup]:
    """Returns the scored groups of a batch; float arrays look into the batch's own memory and are read-only.

    Raises:
        WireError: not a batch of this version's ScoredGroup.
    """
    _check_schema(batch, GROUPS_SCHEMA)
    return [_group_of_row(batch, row) for row in range(batch.num_rows)]


def _group_of_row(batch: pa.RecordBatch, row: int) -> ScoredGroup:
    def plain(name: str) -> Any:
        return batch.column(name)[row].as_py()

    def arrays(name: str, zero_copy: bool) -> tuple[np.ndarray, ...]:
        inner = batch.column(name)[row].values
        return tuple(inner[index].values.to_numpy(zero_copy_only=zero_copy) for index in range(len(inner)))

    completions = Completions(
        pair_id=plain("pair_id"),
        token_ids=tuple(tuple(ids) for ids in plain("token_ids")),
        texts=tuple(text.decode("utf-8", "surrogatepass") for text in plain("texts")),
        log_probs=arrays("log_probs", zero_copy=True),
        finish_reasons=tuple(plain("finish_reasons")),
        sampling=Sampling(
            num_completions=plain("num_completions"),
            temperature=plain("temperature"),
            top_p=plain("top_p"),
            max_tokens=plain("max_tokens"),
            seed=plain("sampling_seed"),
        ),
        encoder_version=plain("encoder_version"),
    )
    return ScoredGroup(
        pair=ImagePair(
            pair_id=completions.pair_id,
            image_a=plain("image_a"),
            image_b=plain("image_b"),
            label_a=plain("label_a"),
            label_b=plain("label_b"),
        ),
        completions=completions,
        verdicts=tuple(plain("verdicts")),
        rewards_G=batch.column("rewards")[row].values.to_numpy(zero_copy_only=True),
        advantages_G=batch.column("advantages")[row].values.to_numpy(zero_copy_only=True),
        describes_a=arrays("describes_a", zero_copy=False),  # booleans are bit-packed in Arrow
        describes_b=arrays("describes_b", zero_copy=False),
    )


def _check_group(group: ScoredGroup) -> None:
    """Lists of one group must agree, or reading would pair a text with another completion's tokens."""
    completions, where = group.completions, f"pair {group.pair.pair_id}"
    if completions.pair_id != group.pair.pair_id:
        raise WireError(f"completions of pair {completions.pair_id!r}", where=where, expected="the same pair id")
    counts = {
        "token_ids": len(completions.token_ids),
        "texts": len(completions.texts),
        "log_probs": len(completions.log_probs),
        "finish_reasons": len(completions.finish_reasons),
        "verdicts": len(group.verdicts),
        "rewards": len(group.rewards_G),
        "advantages": len(group.advantages_G),
        "describes_a": len(group.describes_a),
        "describes_b": len(group.describes_b),
    }
    if len(set(counts.values())) != 1:
        raise WireError(f"lists of unequal length ({counts})", where=where, expected="one entry per completion")


# ---------------------------------------------------------------------- recordings


def write_recording(path: str | Path, groups: Sequence[ScoredGroup]) -> None:
    """Writes scored groups as an Arrow IPC file; the file appears whole or not at all.

    Raises:
        WireError: a value does not fit its column.
        OSError: the file cannot be written.
    """
    batch = groups_to_batch(groups)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    write_atomic(Path(path), memoryview(sink.getvalue()))


def read_recording(path: str | Path) -> list[ScoredGroup]:
    """Returns the scored groups of a recording.

    Raises:
        WireError: the file is missing, damaged, or of another record or version.
    """
    try:
        # Read whole rather than mapped: a mapped file that is truncated later kills the process.
        reader = pa.ipc.open_file(pa.py_buffer(Path(path).read_bytes()))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        return [group for batch in batches for group in groups_from_batch(batch)]
    except OSError as error:
        raise WireError(f"cannot read the recording ({_line(error)})", where=str(path)) from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise WireError(f"not a recording, or a damaged one ({_line(error)})", where=str(path)) from error


# ---------------------------------------------------------------------- columns


def _batch(schema: pa.Schema, columns: dict[str, Any]) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        column = columns[field.name]
        try:
            arrays.append(column if isinstance(column, pa.Array) else pa.array(column, type=field.type))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
            raise WireError(_line(error), where=f"column {field.name}", expected=str(field.type)) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _matrix_column(values_NW: torch.Tensor, *, where: str) -> pa.Array:
    if values_NW.dtype not in _WIRE_TYPES:
        raise WireError(f"values of {values_NW.dtype}", where=where, expected="torch.bfloat16 or torch.float32")
    num_rows, width = values_NW.shape
    if width == 0:
        raise WireError(f"values of shape {tuple(values_NW.shape)}", where=where, expected="at least one column")
    plain = values_NW.detach().cpu().contiguous()
    bits = plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain
    kind = _matrix(_WIRE_TYPES[values_NW.dtype], width)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(bits.numpy().reshape(-1)), type=kind.value_type)
    return pa.LargeListArray.from_arrays(pa.array([0, num_rows], pa.int64()), rows, type=kind)


def _matrix_value(column: pa.Array, width: int) -> torch.Tensor:
    # DLPack rather than numpy: torch takes read-only memory from it without a copy and without a warning.
    values = column.flatten().flatten()
    if values.null_count:
        raise WireError("column values has empty entries", where="tensor batch", expected="a number per entry")
    flat = torch.from_dlpack(values)
    return (flat.view(torch.bfloat16) if flat.dtype == torch.uint16 else flat).view(-1, width)


def _matrix_type(batch: pa.RecordBatch, record: str) -> tuple[pa.DataType, int]:
    """Returns value type and width of the column ``values``: the two free parameters of the tensor schemas."""
    _check_record(batch, record)
    kind = batch.schema.field("values").type if "values" in batch.schema.names else None
    inner = kind.value_type if kind is not None and pa.types.is_large_list(kind) else None
    if inner is None or not pa.types.is_fixed_size_list(inner) or inner.value_type not in _WIRE_TYPES.values():
        raise WireError(
            f"column values is {kind or 'missing'}",
            where=f"{record} batch",
            expected="matrices of uint16 (bfloat16) or float32",
        )
    return inner.value_type, inner.list_size


def _optional_vector(values_N: torch.Tensor | None) -> pa.Array:
    kind = pa.list_(pa.float32())
    if values_N is None:
        return pa.array([None], type=kind)
    values = pa.array(values_N.detach().cpu().to(torch.float32).contiguous().numpy())
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values, type=kind)


def _nested_once(rows: Sequence[np.ndarray], dtype: Any) -> pa.Array:
    """Returns a list column from one array per row, keeping every bit (NaN payloads included)."""
    flat = np.concatenate([np.zeros(0, dtype), *(np.asarray(row, dtype) for row in rows)])
    return _lists([len(row) for row in rows], pa.array(flat))


def _nested(rows: Sequence[Sequence[np.ndarray]], dtype: Any) -> pa.Array:
    return _lists([len(row) for row in rows], _nested_once([array for row in rows for array in row], dtype))


def _lists(lengths: Sequence[int], values: pa.Array) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(values.type))


# ---------------------------------------------------------------------- checks


def _check_record(batch: pa.RecordBatch, record: str) -> None:
    metadata = batch.schema.metadata or {}
    name = metadata.get(_RECORD_KEY, b"").decode("utf-8", "replace")
    version = metadata.get(_VERSION_KEY, b"").decode("utf-8", "replace")
    if name != record:
        raise WireError(f"the batch holds {name or 'no record of this package'}", where="Arrow batch", expected=record)
    if version != VERSION:
        raise WireError(
            f"version {version or 'missing'}",
            where=f"{record} batch",
            expected=f"version {VERSION}",
            fix="read it with the version of saga_dist that wrote it",
        )


def _check_schema(batch: pa.RecordBatch, schema: pa.Schema) -> None:
    record = (schema.metadata or {})[_RECORD_KEY].decode()
    _check_record(batch, record)
    if batch.schema.names != schema.names:
        raise WireError(
            f"columns {', '.join(batch.schema.names)}", where=f"{record} batch", expected=", ".join(schema.names)
        )
    for own, other in zip(schema, batch.schema, strict=True):
        if own.type != other.type:
            raise WireError(f"column {own.name} is {other.type}", where=f"{record} batch", expected=str(own.type))
        if not own.nullable and batch.column(own.name).null_count:
            raise WireError(f"column {own.name} has empty entries", where=f"{record} batch", expected="a value per row")


def _single_row(batch: pa.RecordBatch, schema: pa.Schema) -> dict[str, Any]:
    """Returns the small columns of a one-row batch as Python values."""
    _check_schema(batch, schema)
    record = (schema.metadata or {})[_RECORD_KEY].decode()
    if batch.num_rows != 1:
        raise WireError(f"{batch.num_rows} rows", where=f"{record} batch", expected="one")
    tensors = ("values", "attention_a", "attention_b")
    return {name: batch.column(name)[0].as_py() for name in schema.names if name not in tensors}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
