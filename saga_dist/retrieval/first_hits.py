"""The file ``hits.npz``: the rank of the first hit of every query and method, as paired tests between runs need it.

The file has one byte per query and method, and the labels once per split. Its format is numpy's, read without pickle.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.metrics import hits_at
from saga_dist.utils.atomic_io import write_atomic

HITS_NAME = "hits.npz"
LARGEST_K = 8
"""Largest stored rank; a first hit at a higher rank is stored as 0."""
_EXPECTED = "a hits.npz that a run wrote"


@dataclass(frozen=True, slots=True, eq=False)
class FirstHits:
    """First hits of one method on the queries of one split.

    Raises:
        DataError: dtypes, shapes or ranks do not fit, or there are no queries.
    """

    labels_Q: np.ndarray
    """int64 [Q], class of each query, in the split's order."""
    first_hit_Q: np.ndarray
    """uint8 [Q], rank of the nearest item of the query's class, 1 to 8; 0: there is none among the first 8."""

    def __post_init__(self) -> None:
        labels, first = self.labels_Q, self.first_hit_Q
        if labels.ndim != 1 or labels.dtype != np.int64 or first.shape != labels.shape or first.dtype != np.uint8:
            raise DataError(
                f"labels {labels.dtype} {labels.shape}, ranks {first.dtype} {first.shape}",
                expected="int64 and uint8, one of each per query",
            )
        if len(first) == 0 or first.max() > LARGEST_K:
            raise DataError(f"ranks up to {first.max(initial=0)}", expected=f"0 to {LARGEST_K}, at least one")

    def at(self, k: int) -> np.ndarray:
        """Returns bool [Q], True for queries with a hit among the k nearest items; k is 1 to 8."""
        return hits_at(self.first_hit_Q, k)


def save_hits(path: Path, hits: Mapping[tuple[str, str], FirstHits]) -> None:
    """Writes hits to a file atomically.

    Args:
        path: file to write.
        hits: hits by (method, split).

    Raises:
        DataError: two methods have different queries on the same split.
    """
    arrays: dict[str, np.ndarray] = {}
    for (method, split), found in hits.items():
        labels = arrays.setdefault(f"{split}/labels", found.labels_Q)
        if not np.array_equal(labels, found.labels_Q):
            raise DataError(
                f"{method!r} was evaluated on other queries of split {split!r}", where=str(path), expected="the same"
            )
        arrays[f"{split}/first_hit/{method}"] = found.first_hit_Q
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomic(path, content.getbuffer())


def load_hits(path: Path, method: str, split: str) -> FirstHits:
    """Returns the hits of a method on a split from a file.

    Raises:
        DataError: the file cannot be read, or has no hits of this method and split.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return FirstHits(content[f"{split}/labels"], content[f"{split}/first_hit/{method}"])
    except KeyError as error:
        raise DataError(f"has no method {method!r} on split {split!r}", where=str(path), expected=_EXPECTED) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), expected=_EXPECTED) from error
