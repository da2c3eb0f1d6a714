"""Wall time and peak memory of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from saga_dist.bench.common import reset_resident_peak, resident_peak

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Measured(Generic[ResultT]):
    """Result of some work, and what it took."""

    result: ResultT
    """Result of the work."""
    seconds: float
    """Wall seconds until the device had finished."""
    before_bytes: int
    """Bytes of the device's memory that were allocated before; on a CPU, resident memory of the process."""
    peak_bytes: int
    """Highest number of such bytes during the work."""
    reserved_bytes: int
    """Highest number of bytes that torch had taken from the device; on a CPU equal to ``peak_bytes``."""

    @property
    def working_bytes(self) -> int:
        """Highest number of bytes above those before."""
        return max(self.peak_bytes - self.before_bytes, 0)


def measured(device: torch.device, work: Callable[[], ResultT]) -> Measured[ResultT]:
    """Returns the result of some work with its time and memory.

    Args:
        device: device that the work runs on.
        work: the work; it is called once.
    """
    synchronize(device)
    before = reset_peak(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    seconds = time.perf_counter() - started
    return Measured(result, seconds, before, *peak_memory_of(device))


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished everything; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Starts a new measurement of peak memory; returns the bytes that are allocated now."""
    if device.type != "cuda":
        return reset_resident_peak()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory_of(device: torch.device) -> tuple[int, int]:
    """Returns the peaks since ``reset_peak``: bytes allocated, and bytes that torch has taken from the device."""
    if device.type != "cuda":
        return resident_peak(), resident_peak()
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
