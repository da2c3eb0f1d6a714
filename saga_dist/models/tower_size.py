"""Number of parameters of a checkpoint's vision tower, from the headers of its weight files; imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from saga_dist.models.model_files import INDEX_NAME, SINGLE_NAME

LANGUAGE_PREFIXES = (
    "model.language_model.",
    "language_model.",
    "model.embed_tokens.",
    "model.layers.",
    "model.norm.",
    "lm_head.",
)
"""Prefixes of the tensors of the language model in the checkpoints of all built-in families."""
_LENGTH_BYTES = 8
_LONGEST_HEADER = 2**27


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint folder; they need not exist.

    Args:
        folder: folder of the checkpoint.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        return [folder / SINGLE_NAME]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []  # loading the model says what is wrong with the index
    return [folder / name for name in sorted(names)]


def num_tower_parameters(folder: Path) -> int | None:
    """Returns the number of parameters that do not belong to the language model; None when a header cannot be read.

    Args:
        folder: folder of the checkpoint.
    """
    total = 0
    for path in weight_files(folder):
        try:
            shapes = list(_shapes(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        total += sum(math.prod(shape) for name, shape in shapes if not name.startswith(LANGUAGE_PREFIXES))
    return total or None


def _shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yields name and shape of every tensor of a safetensors file, from its JSON header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry["shape"]
