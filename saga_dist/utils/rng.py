"""Counter-based random numbers: every random choice is a pure function of its key.

There is no generator state to save. A retried rollout is the same rollout and a resumed run is the same run, because
both use the same keys, e.g. ``counter_seed(run_seed, "sampling", random_key(pair_id))``.
"""

from __future__ import annotations

import hashlib

import numpy as np


def counter_seed(*key: int | str) -> int:
    """Returns the seed of ``key``, an integer in [0, 2^63); the order of the parts matters, and 1 and "1" differ."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def counter_generator(*key: int | str) -> np.random.Generator:
    """Returns a new numpy generator (Philox) with the seed of ``key``."""
    return np.random.Generator(np.random.Philox(counter_seed(*key)))
