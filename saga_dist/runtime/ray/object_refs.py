"""Handles of records in Ray's object store, and functions that store and fetch the records.

Payloads are Arrow batches. On one node all readers map the same shared memory, and nothing is copied or unpickled. A
handle wraps its reference, because Ray would fetch a bare reference among the arguments of a call; the coordinator
passes handles on without fetching payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from saga_dist.errors import DeadlineExceeded, LearnerLost
from saga_dist.types import EncoderTokens, TokenGradients
from saga_dist.wire import gradients_from_batch, gradients_to_batch, tokens_from_batch, tokens_to_batch


@dataclass(frozen=True, slots=True)
class ObjectHandle:
    """Handle of the Arrow batch of one pair in the object store."""

    pair_id: str
    """Id of the pair."""
    ref: ray.ObjectRef
    """Reference of the batch."""


@dataclass(frozen=True, slots=True)
class LocalHandle:
    """Handle of the token gradients of one pair that are in the learner's own process."""

    pair_id: str
    """Id of the pair."""


def put_tokens(tokens: EncoderTokens) -> ObjectHandle:
    """Stores the tokens of a pair once, for all readers, and returns their handle."""
    return ObjectHandle(tokens.pair_id, ray.put(tokens_to_batch(tokens)))


def fetch_tokens(handles: Sequence[ObjectHandle], *, deadline_s: float) -> list[EncoderTokens]:
    """Returns the tokens behind handles; their values are views of shared memory and must not be written to.

    Args:
        handles: handles of ``put_tokens``.
        deadline_s: longest time to wait, seconds.

    Raises:
        DeadlineExceeded: the payloads did not arrive in time.
        LearnerLost: a payload is lost.
    """
    return [tokens_from_batch(batch) for batch in _fetch(handles, deadline_s)]


def pack_gradients(gradients: TokenGradients) -> pa.RecordBatch:
    """Returns token gradients as an Arrow batch."""
    return gradients_to_batch(gradients)


def fetch_gradients(handles: Sequence[ObjectHandle], *, deadline_s: float) -> list[TokenGradients]:
    """Returns the token gradients behind handles, as ``fetch_tokens`` does."""
    return [gradients_from_batch(batch) for batch in _fetch(handles, deadline_s)]


def _fetch(handles: Sequence[ObjectHandle], deadline_s: float) -> list[pa.RecordBatch]:
    if not handles:
        return []
    where = f"pair {handles[0].pair_id}" + (f" and {len(handles) - 1} more" if len(handles) > 1 else "")
    try:
        return ray.get([handle.ref for handle in handles], timeout=deadline_s)
    except GetTimeoutError as error:
        raise DeadlineExceeded(f"payloads not fetched within {deadline_s:g} s", where=where) from error
    except ObjectLostError as error:
        raise LearnerLost(
            "the payload is lost: the process or node that held it died", where=where, fix="the same command resumes"
        ) from error
