"""Conversion of scored groups to Arrow batches, one row per group, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from saga_dist.errors import WireError
from saga_dist.types import Completions, ImagePair, Sampling, ScoredGroup
from saga_dist.utils.pair_ids import from_zero_based
from saga_dist.wire.columns import (
    check_schema,
    field,
    nested,
    nested_once,
    nested_value,
    record_schema,
    to_batch,
    version_of,
)

GROUPS_SCHEMA = record_schema(
    "ScoredGroup",
    [
        field("pair_id", pa.string()),
        field("image_a", pa.int64()),
        field("image_b", pa.int64()),
        field("label_a", pa.int64()),
        field("label_b", pa.int64()),
        field("num_completions", pa.int64()),
        field("temperature", pa.float64()),
        field("top_p", pa.float64()),
        field("max_tokens", pa.int64()),
        field("sampling_seed", pa.uint64()),
        field("encoder_version", pa.int64()),
        field("token_ids", pa.list_(pa.list_(pa.int32()))),
        field("texts", pa.list_(pa.binary())),
        field("log_probs", pa.list_(pa.list_(pa.float32()))),
        field("finish_reasons", pa.list_(pa.string())),
        field("verdicts", pa.list_(pa.bool_())),
        field("rewards", pa.list_(pa.float32())),
        field("is_correct", pa.list_(pa.bool_())),
        field("advantages", pa.list_(pa.float32())),
        field("describes_a", pa.list_(pa.list_(pa.bool_()))),
        field("describes_b", pa.list_(pa.list_(pa.bool_()))),
        field("replayed", pa.list_(pa.list_(pa.float32()))),
    ],
)
_EARLIER_SCHEMAS = {
    "3": record_schema("ScoredGroup", [one for one in GROUPS_SCHEMA if one.name != "is_correct"], version="3"),
    "4": record_schema("ScoredGroup", list(GROUPS_SCHEMA), version="4"),
}
"""Schemas of earlier recordings. In versions 3 and 4 the steps in pair ids and file names count from 0. In version 3 a
completion was correct when its reward was 1."""


def groups_to_batch(groups: Sequence[ScoredGroup]) -> pa.RecordBatch:
    """Returns a batch with one row per scored group, with its pair, completions and sampling parameters.

    Raises:
        WireError: a value does not fit its column (a token id of more than 32 bits, a pair id with a lone surrogate),
            or lists of a group differ in length.
    """
    completions = [group.completions for group in groups]
    samplings = [one.sampling for one in completions]
    for group in groups:
        _check_group(group)
    return to_batch(
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
            "log_probs": nested([one.log_probs for one in completions], np.float32),
            "finish_reasons": [one.finish_reasons for one in completions],
            "verdicts": [group.verdicts for group in groups],
            "rewards": nested_once([group.rewards_G for group in groups], np.float32),
            "is_correct": nested_once([group.is_correct_G for group in groups], np.bool_),
            "advantages": nested_once([group.advantages_G for group in groups], np.float32),
            "describes_a": nested([group.describes_a for group in groups], np.bool_),
            "describes_b": nested([group.describes_b for group in groups], np.bool_),
            "replayed": nested([group.replayed for group in groups], np.float32),
        },
    )


def groups_from_batch(batch: pa.RecordBatch) -> list[ScoredGroup]:
    """Returns the scored groups of a batch; their float arrays are read-only views of the batch's memory.

    Raises:
        WireError: the batch does not hold ScoredGroup records of this version, or of version 3 or 4.
    """
    if counts_from_zero(batch.schema):
        batch = _from_earlier(batch)
    check_schema(batch, GROUPS_SCHEMA)
    return [_group_of_row(batch, row) for row in range(batch.num_rows)]


def counts_from_zero(schema: pa.Schema) -> bool:
    """Returns True for the schema of an earlier version, in which steps are counted from 0."""
    return version_of(schema) in _EARLIER_SCHEMAS


def _from_earlier(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a batch of an earlier version with present pair ids, and the column ``is_correct`` if it lacked it."""
    check_schema(batch, _EARLIER_SCHEMAS[version_of(batch.schema)])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["pair_id"] = [from_zero_based(pair_id) for pair_id in batch.column("pair_id").to_pylist()]
    if "is_correct" not in columns:
        rewards = [row.values.to_numpy() for row in batch.column("rewards")]
        columns["is_correct"] = nested_once([rewards_G == 1 for rewards_G in rewards], np.bool_)
    return to_batch(GROUPS_SCHEMA, columns)


def _group_of_row(batch: pa.RecordBatch, row: int) -> ScoredGroup:
    def plain(name: str) -> Any:
        return batch.column(name)[row].as_py()

    def arrays(name: str, zero_copy: bool) -> tuple[np.ndarray, ...]:
        return nested_value(batch.column(name), row, zero_copy=zero_copy)

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
        is_correct_G=batch.column("is_correct")[row].values.to_numpy(zero_copy_only=False),
        advantages_G=batch.column("advantages")[row].values.to_numpy(zero_copy_only=True),
        describes_a=arrays("describes_a", zero_copy=False),  # booleans are bit-packed in Arrow
        describes_b=arrays("describes_b", zero_copy=False),
        replayed=arrays("replayed", zero_copy=True),
    )


def _check_group(group: ScoredGroup) -> None:
    """Checks that the pair ids agree and that all lists of a group have one entry per completion.

    Otherwise a reader would combine a text with the tokens of another completion.
    """
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
        "is_correct": len(group.is_correct_G),
        "advantages": len(group.advantages_G),
        "describes_a": len(group.describes_a),
        "describes_b": len(group.describes_b),
        "replayed": len(group.replayed) or len(group.verdicts),  # may be empty
    }
    if len(set(counts.values())) != 1:
        raise WireError(f"lists of unequal length ({counts})", where=where, expected="one entry per completion")
