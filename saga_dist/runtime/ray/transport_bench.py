"""The part of the transport bench that needs Ray: a reader in its own process, and two ways to send payloads to it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from saga_dist.config import RunConfig
from saga_dist.runtime.ray.object_refs import ObjectHandle, fetch_tokens, put_tokens
from saga_dist.runtime.ray.session import RaySession
from saga_dist.types import EncoderTokens

DEADLINE_S = 120.0
"""Longest wait for one call of the reader, seconds."""
NUM_READERS = 2
"""Number of times that each set of payloads is read: as by the rollout worker and by the replay worker."""

Place = tuple[str, str, int]
"""Position of a byte of shared memory, the same in every process: device, inode, offset."""


@dataclass(frozen=True, slots=True)
class OpenedPayloads:
    """Result of opening a set of payloads in one process."""

    seconds: float
    """Wall-clock time until all tensors were available, seconds."""
    digests: tuple[str, ...]
    """sha256 of the values of each pair."""
    places: tuple[Place | None, ...]
    """Position of the values of each pair; None when they are in private memory of the process."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Transport of a set of payloads from this process to the reader."""

    put_s: float
    """Time to store the payloads, seconds."""
    opened: tuple[OpenedPayloads, ...]
    """Results of the reads: the one of the rollout worker, then the one of the replay worker."""

    def seconds(self, num_readers: int) -> float:
        """Returns the time of storing the payloads and of the first ``num_readers`` reads, seconds."""
        return self.put_s + sum(opened.seconds for opened in self.opened[:num_readers])


class PayloadReader:
    """Actor that opens payloads in its own process, as a worker does."""

    def open_arrow(self, handles: Sequence[ObjectHandle]) -> OpenedPayloads:
        """Opens payloads that were stored as Arrow batches."""
        return _opened(lambda: fetch_tokens(handles, deadline_s=DEADLINE_S))

    def open_pickled(self, handles: Sequence[ObjectHandle]) -> OpenedPayloads:
        """Opens payloads that were stored as records with torch tensors."""
        return _opened(lambda: ray.get([handle.ref for handle in handles], timeout=DEADLINE_S))


class Transport:
    """Sends records from this process to a reader on the same node, as Arrow batches or pickled.

    Args:
        reader: actor handle of a ``PayloadReader``.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def ours(self, records: Sequence[EncoderTokens]) -> RoundTrip:
        """Sends records as Arrow batches."""
        return self._send(records, put_tokens, self._reader.open_arrow)

    def pickled(self, records: Sequence[EncoderTokens]) -> RoundTrip:
        """Sends records as they are; Ray pickles their tensors."""
        return self._send(records, _put_pickled, self._reader.open_pickled)

    def places(self, records: Sequence[EncoderTokens]) -> tuple[tuple[Place | None, ...], tuple[Place | None, ...]]:
        """Returns the positions of published values, in this process and in the reader's."""
        handles = [put_tokens(record) for record in records]
        here = _opened(lambda: fetch_tokens(handles, deadline_s=DEADLINE_S))
        there: OpenedPayloads = ray.get(self._reader.open_arrow.remote(handles), timeout=DEADLINE_S)
        return here.places, there.places

    def _send(
        self, records: Sequence[EncoderTokens], put: Callable[[EncoderTokens], ObjectHandle], read: Any
    ) -> RoundTrip:
        started = time.perf_counter()
        handles = [put(record) for record in records]
        put_s = time.perf_counter() - started
        opened = tuple(ray.get(read.remote(handles), timeout=DEADLINE_S) for _ in range(NUM_READERS))
        return RoundTrip(put_s, opened)


@contextmanager
def transport(config: RunConfig) -> Iterator[Transport]:
    """Yields a transport with a running reader; ends the reader and the Ray session."""
    session = RaySession(config)
    try:
        reader = ray.remote(num_cpus=0.5, max_restarts=0)(PayloadReader).remote()
        try:
            ray.get(reader.open_arrow.remote([]), timeout=DEADLINE_S)
            yield Transport(reader)
        finally:
            ray.kill(reader, no_restart=True)
    finally:
        session.close()


def place_of(address: int) -> Place | None:
    """Returns the position of the shared byte that is mapped at an address of this process; None in private memory."""
    for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
        span, rights, offset, device, inode = line.split(maxsplit=5)[:5]
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            return (device, inode, int(offset, 16) + address - start) if rights.endswith("s") else None
    return None


def digest(record: EncoderTokens) -> str:
    """Returns the sha256 of a record's values."""
    return hashlib.sha256(record.values_NW.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _put_pickled(record: EncoderTokens) -> ObjectHandle:
    return ObjectHandle(record.pair_id, ray.put(record))


def _opened(read: Callable[[], Sequence[EncoderTokens]]) -> OpenedPayloads:
    started = time.perf_counter()
    records = read()
    seconds = time.perf_counter() - started
    return OpenedPayloads(
        seconds=seconds,
        digests=tuple(digest(record) for record in records),
        places=tuple(place_of(record.values_NW.data_ptr()) for record in records),
    )
