"""Conversion of encoder tokens and token gradients to one-row Arrow batches, and back without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from saga_dist.types import EncoderTokens, Grid, LogProbMismatch, TokenGradients
from saga_dist.wire.columns import (
    field,
    matrix_column,
    matrix_parameters,
    matrix_type,
    matrix_value,
    nested,
    nested_value,
    optional_vector,
    record_schema,
    single_row,
    to_batch,
)


def _tokens_schema(kind: pa.DataType, width: int) -> pa.Schema:
    return record_schema(
        "EncoderTokens",
        [
            field("pair_id", pa.string()),
            field("values", matrix_type(kind, width)),
            field("lengths", pa.list_(pa.int64())),
            field("grids", pa.list_(pa.list_(pa.int64(), 3))),
            field("num_deepstack", pa.int64()),
            field("encoder_version", pa.int64()),
        ],
    )


def _gradients_schema(kind: pa.DataType, width: int) -> pa.Schema:
    return record_schema(
        "TokenGradients",
        [
            field("pair_id", pa.string()),
            field("values", matrix_type(kind, width)),
            field("attention_a", pa.list_(pa.float32()), nullable=True),
            field("attention_b", pa.list_(pa.float32()), nullable=True),
            field("negative_entropy", pa.float64()),
            field("num_attended", pa.int64()),
            field("loss", pa.float64()),
            field("num_tokens", pa.int64()),
            field("log_prob_gap", pa.float64()),
            field("mismatch_kl", pa.float64()),
            field("weight_quantiles", pa.list_(pa.float64())),
            field("truncated_share", pa.float64()),
            field("replayed", pa.list_(pa.list_(pa.float32()))),
            field("encoder_version", pa.int64()),
        ],
    )


def tokens_to_batch(tokens: EncoderTokens) -> pa.RecordBatch:
    """Returns a batch of one row with the tokens of a pair; contiguous tokens on the CPU are not copied.

    Raises:
        WireError: the tokens are neither bfloat16 nor float32.
    """
    values = matrix_column(tokens.values_NW, where=f"pair {tokens.pair_id}")
    schema = _tokens_schema(values.type.value_type.value_type, tokens.values_NW.shape[1])
    return to_batch(
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
    """Returns the tokens in a one-row batch; ``values_NW`` is a view of the batch's memory and must not be written to.

    Raises:
        WireError: the batch is not one row of EncoderTokens of this version.
        TokenError: lengths, grids and rows do not fit each other.
    """
    kind, width = matrix_parameters(batch, "EncoderTokens")
    row = single_row(batch, _tokens_schema(kind, width))
    grids: list[Grid] = [(frames, rows, columns) for frames, rows, columns in row["grids"]]
    return EncoderTokens(
        pair_id=row["pair_id"],
        values_NW=matrix_value(batch.column("values"), width),
        lengths=tuple(row["lengths"]),
        grids=tuple(grids),
        num_deepstack=row["num_deepstack"],
        encoder_version=row["encoder_version"],
    )


def gradients_to_batch(gradients: TokenGradients) -> pa.RecordBatch:
    """Returns a batch of one row with the token gradients of a pair.

    Raises:
        WireError: the gradients are neither bfloat16 nor float32.
    """
    values = matrix_column(gradients.values_NW, where=f"pair {gradients.pair_id}")
    schema = _gradients_schema(values.type.value_type.value_type, gradients.values_NW.shape[1])
    return to_batch(
        schema,
        {
            "pair_id": [gradients.pair_id],
            "values": values,
            "attention_a": optional_vector(gradients.attention_a_N),
            "attention_b": optional_vector(gradients.attention_b_N),
            "negative_entropy": [gradients.negative_entropy],
            "num_attended": [gradients.num_attended],
            "loss": [gradients.loss],
            "num_tokens": [gradients.num_tokens],
            "log_prob_gap": [gradients.mismatch.log_prob_gap],
            "mismatch_kl": [gradients.mismatch.mismatch_kl],
            "weight_quantiles": [gradients.mismatch.weight_quantiles],
            "truncated_share": [gradients.mismatch.truncated_share],
            "replayed": nested([gradients.mismatch.replayed], np.float32),
            "encoder_version": [gradients.encoder_version],
        },
    )


def gradients_from_batch(batch: pa.RecordBatch) -> TokenGradients:
    """Returns the gradients in a one-row batch; tensors are views of the batch's memory and must not be written to.

    Raises:
        WireError: the batch is not one row of TokenGradients of this version.
    """
    kind, width = matrix_parameters(batch, "TokenGradients")
    row = single_row(batch, _gradients_schema(kind, width))
    attention_a, attention_b = (
        torch.from_dlpack(column.flatten()) if column.null_count == 0 else None
        for column in (batch.column("attention_a"), batch.column("attention_b"))
    )
    return TokenGradients(
        pair_id=row["pair_id"],
        values_NW=matrix_value(batch.column("values"), width),
        attention_a_N=attention_a,
        attention_b_N=attention_b,
        negative_entropy=row["negative_entropy"],
        num_attended=row["num_attended"],
        loss=row["loss"],
        num_tokens=row["num_tokens"],
        mismatch=LogProbMismatch(
            log_prob_gap=row["log_prob_gap"],
            mismatch_kl=row["mismatch_kl"],
            weight_quantiles=tuple(row["weight_quantiles"]),
            truncated_share=row["truncated_share"],
            replayed=nested_value(batch.column("replayed"), 0, zero_copy=True),
        ),
        encoder_version=row["encoder_version"],
    )
