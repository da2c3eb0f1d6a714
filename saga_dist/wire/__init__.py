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

from saga_dist.wire.columns import VERSION
from saga_dist.wire.groups import GROUPS_SCHEMA, groups_from_batch, groups_to_batch
from saga_dist.wire.recording import read_recording, write_recording
from saga_dist.wire.tensors import gradients_from_batch, gradients_to_batch, tokens_from_batch, tokens_to_batch

__all__ = [
    "GROUPS_SCHEMA",
    "VERSION",
    "gradients_from_batch",
    "gradients_to_batch",
    "groups_from_batch",
    "groups_to_batch",
    "read_recording",
    "tokens_from_batch",
    "tokens_to_batch",
    "write_recording",
]
