"""Arrow format of the records, between processes, on disk and in test fixtures.

Every record has a schema with a name and a version in its metadata. A batch of another record, version or set of
columns raises a ``WireError``, and a file of recorded groups a ``DataError``. One row is one record.

- A bfloat16 tensor is stored as ``uint16`` (the same 16 bits), a float32 tensor as it is. Tensors and log-probabilities
  are read without a copy: they are views of the Arrow buffer, which may lie in shared, read-only memory. Torch cannot
  mark a tensor read-only, so **never write in place into a tensor that was read from a batch.** (Numpy arrays are
  marked, and writing to them raises.)
- Texts are untrusted model output and may contain lone surrogates, which Arrow's string type does not accept; they are
  stored as binary, in UTF-8 with ``surrogatepass``, which is exact for every Python string (NUL included).
"""

from __future__ import annotations

from saga_dist.wire.columns import VERSION
from saga_dist.wire.groups import GROUPS_SCHEMA, groups_from_batch, groups_to_batch
from saga_dist.wire.identity import RunIdentity
from saga_dist.wire.recording import (
    Recording,
    check_recording,
    open_recording,
    read_recording,
    recording_path,
    recordings,
    write_recording,
)
from saga_dist.wire.tensors import gradients_from_batch, gradients_to_batch, tokens_from_batch, tokens_to_batch

__all__ = [
    "GROUPS_SCHEMA",
    "VERSION",
    "Recording",
    "RunIdentity",
    "check_recording",
    "gradients_from_batch",
    "gradients_to_batch",
    "groups_from_batch",
    "groups_to_batch",
    "open_recording",
    "read_recording",
    "recording_path",
    "recordings",
    "tokens_from_batch",
    "tokens_to_batch",
    "write_recording",
]
