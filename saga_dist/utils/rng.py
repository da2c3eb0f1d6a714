"""Random numbers from counters: every random choice is a pure function of its key.

There is no generator state to save: a retried rollout is the same rollout and a resumed run is the same run, because
both ask for the same key, e.g. ``counter_seed(run_seed, "sampling", step, pair_id)``.
"""

from __future__ import annotations

import hashlib

import numpy as np


def counter_seed(*key: int | str) -> int:
    """Returns the 63-bit seed that belongs to ``key`` (order matters, ``1`` and ``"1"`` differ)."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def counter_generator(*key: int | str) -> np.random.Generator:
    """Returns a fresh numpy generator for ``key``."""
    return np.random.Generator(np.random.Philox(counter_seed(*key)))
