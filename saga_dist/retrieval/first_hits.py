"""``hits.npz``: for every query of every method, the rank of its first hit. What a paired test between two runs needs.

One byte a query; labels once a split. numpy's own format, read without pickle.
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
"""Ranks beyond it are 0: no hit."""
_EXPECTED = "a hits.npz that a run wrote"


@dataclass(frozen=True, slots=True, eq=False)
class FirstHits:
    """One method on the queries of one split."""

    labels_Q: np.ndarray
    """int64 [Q], the class of each query, in the split's order."""
    first_hit_Q: np.ndarray
    """uint8 [Q], rank of the nearest item of the query's class, 1 to 8; 0: beyond."""

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
        """Returns bool [Q]: a hit among the k nearest, k from 1 to 8."""
        return hits_at(self.first_hit_Q, k)


def save_hits(path: Path, hits: Mapping[tuple[str, str], FirstHits]) -> None:
    """Writes the hits of (method, split) in one piece.

    Raises:
        DataError: two methods met different queries on one split.
    """
    arrays: dict[str, np.ndarray] = {}
    for (method, split), found in hits.items():
        labels = arrays.setdefault(f"{split}/labels", found.labels_Q)
        if not np.array_equal(labels, found.labels_Q):
            raise DataError(f"{method!r} met other queries of split {split!r}", where=str(path), expected="the same")
        arrays[f"{split}/first_hit/{method}"] = found.first_hit_Q
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomic(path, content.getbuffer())


def load_hits(path: Path, method: str, split: str) -> FirstHits:
    """Returns the hits of a method on a split.

    Raises:
        DataError: the file cannot be read, or does not have them.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return FirstHits(content[f"{split}/labels"], content[f"{split}/first_hit/{method}"])
    except KeyError as error:
        raise DataError(f"has no method {method!r} on split {split!r}", where=str(path), expected=_EXPECTED) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), expected=_EXPECTED) from error
