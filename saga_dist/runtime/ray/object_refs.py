"""References into the object store, and how records are put there and opened again.

Payloads are Arrow batches: on one node every reader maps the same shared memory, nothing is copied or unpickled. A
handle wraps its reference so that Ray, which fetches bare references among a call's arguments, leaves it alone: the
coordinator passes handles on and never sees a payload.
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
    """One pair's Arrow batch in the object store."""

    pair_id: str
    ref: ray.ObjectRef


@dataclass(frozen=True, slots=True)
class LocalHandle:
    """One pair's token gradients, kept in the learner's own process."""

    pair_id: str


def put_tokens(tokens: EncoderTokens) -> ObjectHandle:
    """Returns the handle of one payload, however many workers and completions will read it."""
    return ObjectHandle(tokens.pair_id, ray.put(tokens_to_batch(tokens)))


def fetch_tokens(handles: Sequence[ObjectHandle], *, deadline_s: float) -> list[EncoderTokens]:
    """Returns the records of ``handles``; their values look into shared memory and must not be written to."""
    return [tokens_from_batch(batch) for batch in _fetch(handles, deadline_s)]


def pack_gradients(gradients: TokenGradients) -> pa.RecordBatch:
    """Returns the payload of token gradients."""
    return gradients_to_batch(gradients)


def fetch_gradients(handles: Sequence[ObjectHandle], *, deadline_s: float) -> list[TokenGradients]:
    """Returns the records of ``handles``."""
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
