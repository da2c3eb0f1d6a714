"""Sha256 of a model's weights, streamed from their device and remembered by content on each node.

Hashing 16 GB takes ten seconds and more, and a run asks for the digest twice, in every process that has the weights. A
checksum of every word finds out in a fraction of that whether weights of this content were hashed on this node before.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saga_dist.errors import OutputError
from saga_dist.utils.atomic_io import write_atomic

BLOCK_BYTES = 64 << 20
"""Bytes that are copied from a device, or added up, at a time."""
REMEMBERED_BYTES = 1 << 30
"""Smallest size of weights whose digest is remembered; less is hashed in about a second."""
_DIGEST = re.compile(rb"[0-9a-f]{64}")


def weights_digest(module: nn.Module) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes of all weights of a module, in the order of the names."""
    return state_digest(module.state_dict())


def state_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes of weights, in the order of the names."""
    if sum(tensor.nbytes for tensor in weights.values()) < REMEMBERED_BYTES:
        return hash_weights(weights)
    path = digest_folder() / checksum(weights)
    digest = _remembered(path)
    if digest is None:
        digest = hash_weights(weights)
        _remember(path, digest)
    return digest


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes of all weights, which are always read."""
    total, stream = hashlib.sha256(), _HostStream()
    for name, tensor in sorted(weights.items()):
        total.update(_description(name, tensor))
        for block in stream.blocks(_bytes_of(tensor)):
            total.update(block.data)
    return total.hexdigest()


def checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns a checksum of all weights, computed where they are: two sums of every tensor's 64-bit words.

    The second sum weighs each word by its position, so that words that change places are noticed. Both overflow, which
    is exact for integers. It guards against damage and mix-ups, not against an attacker.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(_description(name, tensor))
        flat = _bytes_of(tensor)
        whole = len(flat) // 8 * 8
        sums = torch.zeros(3, dtype=torch.int64, device=flat.device)
        for index, words in enumerate(flat[:whole].view(torch.int64).split(BLOCK_BYTES // 8)):
            positions = torch.arange(len(words), device=flat.device) + (index * (BLOCK_BYTES // 8) + 1)
            sums[0] += words.sum()
            sums[1] += (words * positions).sum()
        sums[2] = flat[whole:].to(torch.int64).sum()
        total.update(repr(sums.tolist()).encode())
    return total.hexdigest()


def digest_folder() -> Path:
    """Returns the folder of this node in which digests are remembered, one file each, named after the checksum."""
    return Path(tempfile.gettempdir()) / f"saga-dist-{os.getuid()}" / "digests"


def _remembered(path: Path) -> str | None:
    """Returns the digest in a file of this user; None when there is none, or the file holds something else."""
    try:
        if path.stat().st_uid != os.getuid():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content.decode() if _DIGEST.fullmatch(content) else None


def _remember(path: Path, digest: str) -> None:
    """Writes a digest in one step, so that no reader sees a part of it; where that is impossible, nothing is kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.parent.stat().st_uid == os.getuid():
            write_atomic(path, digest.encode())
    except (OSError, OutputError):
        return


def _description(name: str, tensor: torch.Tensor) -> bytes:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of a tensor as uint8 [bytes] on its device, copied only where they are not contiguous."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return flat if flat.storage_offset() % 8 == 0 else flat.clone()


class _HostStream:
    """Copies tensors to the host block by block; from a GPU, the next block travels while the caller uses this one."""

    def __init__(self) -> None:
        self._pinned: list[torch.Tensor] = []

    def blocks(self, flat: torch.Tensor) -> Iterator[np.ndarray]:
        """Yields the bytes of a uint8 tensor, each block valid until the next one is asked for."""
        if flat.device.type != "cuda":
            yield flat.cpu().numpy()
            return
        if not self._pinned:  # pageable memory would be copied twice
            self._pinned = [torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        pieces, copied = flat.split(BLOCK_BYTES), [torch.cuda.Event(), torch.cuda.Event()]

        def start(index: int) -> None:
            self._pinned[index % 2][: len(pieces[index])].copy_(pieces[index], non_blocking=True)
            copied[index % 2].record()

        start(0)
        for index, piece in enumerate(pieces):
            if index + 1 < len(pieces):
                start(index + 1)
            copied[index % 2].synchronize()
            yield self._pinned[index % 2][: len(piece)].numpy()
