"""Shared parts of the benchmarks: A/B timing in turns, peak memory in a separate process, and the report.

Time is the processor time of this process on one thread unless a benchmark says otherwise: on a shared machine it does
not depend on other processes' load, and on an idle machine it equals the wall time.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from saga_dist.config import Section

OursT = TypeVar("OursT")
OtherT = TypeVar("OtherT")


class Size(StrEnum):
    """Amount of work of a benchmark."""

    TINY = "tiny"
    """A few seconds, for tests; the measured values have no meaning."""
    QUICK = "quick"
    """One or two minutes on two cores."""
    FULL = "full"
    """The sizes for which the targets are stated."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One row of a benchmark: the medians of both sides, their ratio and the target."""

    case: str
    """Name of the measured case."""
    ours: float
    """Median of saga_dist, in ``unit``."""
    other: float | None
    """Median of the alternative, in ``unit``; None without an alternative."""
    unit: str
    """Unit of ``ours`` and ``other``."""
    ratio: float | None
    """Factor by which saga_dist is better; above 1 is better for every unit. None without an alternative."""
    bar: float | None
    """Target: the ratio to reach or, without an alternative, the value to reach; None without a target."""
    met: bool | None
    """True when the target is reached; None without a target."""
    equal: bool
    """True when both sides gave the same result within the benchmark's tolerance."""
    detail: dict[str, float] = field(default_factory=dict)
    """Further values by name."""


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a whole benchmark."""

    bench: str
    """Name of the benchmark."""
    alternative: str
    """Implementation that saga_dist is compared with."""
    rows: tuple[BenchRow, ...]
    """Measured cases."""
    notes: tuple[str, ...] = ()
    """Sentences that explain the rows."""

    @property
    def equal(self) -> bool:
        """True when both sides gave the same result in every row."""
        return all(row.equal for row in self.rows)


def less_is_better(
    case: str,
    ours: float,
    other: float,
    unit: str,
    *,
    equal: bool,
    bar: float | None = None,
    detail: dict[str, float] | None = None,
) -> BenchRow:
    """Returns the row of a time or a size, with ratio = other / ours; the arguments are fields of ``BenchRow``."""
    return _row(case, ours, other, unit, other / ours, equal, bar, detail)


def more_is_better(
    case: str,
    ours: float,
    other: float,
    unit: str,
    *,
    equal: bool,
    bar: float | None = None,
    detail: dict[str, float] | None = None,
) -> BenchRow:
    """Returns the row of a rate, with ratio = ours / other; the arguments are fields of ``BenchRow``."""
    return _row(case, ours, other, unit, ours / other, equal, bar, detail)


def _row(
    case: str,
    ours: float,
    other: float,
    unit: str,
    ratio: float,
    equal: bool,
    bar: float | None,
    detail: dict[str, float] | None,
) -> BenchRow:
    return BenchRow(case, ours, other, unit, ratio, bar, None if bar is None else ratio >= bar, equal, detail or {})


@dataclass(slots=True)
class Timing(Generic[OursT]):
    """Times and results of repeated runs of one side."""

    cpu_s: list[float] = field(default_factory=list)
    """Processor seconds of each run."""
    wall_s: list[float] = field(default_factory=list)
    """Wall seconds of each run."""
    results: list[OursT] = field(default_factory=list)
    """Result of each run."""

    @property
    def cpu(self) -> float:
        """Median processor time in seconds."""
        return statistics.median(self.cpu_s)

    @property
    def wall(self) -> float:
        """Median wall time in seconds."""
        return statistics.median(self.wall_s)

    def run(self, work: Callable[[], OursT]) -> None:
        """Calls ``work`` once and appends its times and result."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)
        self.results.append(result)


def in_turns(
    ours: Callable[[], OursT], other: Callable[[], OtherT], repeats: int, *, warm_up: bool = True
) -> tuple[Timing[OursT], Timing[OtherT]]:
    """Returns the timings of both sides, run as A B, B A, A B …, so that load on the machine affects both alike.

    Args:
        ours: one run of saga_dist.
        other: one run of the alternative.
        repeats: timed runs per side.
        warm_up: run both sides once before, without timing.
    """
    if warm_up:
        ours()
        other()
    timing_ours: Timing[OursT] = Timing()
    timing_other: Timing[OtherT] = Timing()
    for repeat in range(repeats):
        if repeat % 2:
            timing_other.run(other)
            timing_ours.run(ours)
        else:
            timing_ours.run(ours)
            timing_other.run(other)
    return timing_ours, timing_other


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread within the block; other libraries follow OMP_NUM_THREADS, which the command sets."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(work: Callable[[], object]) -> int:
    """Returns the peak of this process's resident memory during ``work`` above the value before, in bytes (Linux)."""
    before = reset_resident_peak()
    work()
    return max(resident_peak() - before, 0)


def reset_resident_peak() -> int:
    """Sets the peak of this process's resident memory to the present value and returns that, in bytes (Linux)."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory of earlier work could be used again without being counted
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # resets the kernel's peak value VmHWM
    return _status_bytes("VmRSS")


def resident_peak() -> int:
    """Returns the peak of this process's resident memory since ``reset_resident_peak``, in bytes (Linux)."""
    return _status_bytes("VmHWM")


def in_own_process(function: Callable[..., OursT], *arguments: Any) -> OursT:
    """Returns ``function(*arguments)`` computed in a new process, whose memory holds nothing of earlier work."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, *arguments).result()


def random_model(folder: Path, **sizes: Any) -> Path:
    """Writes a random model into ``folder`` and returns ``folder``.

    Args:
        folder: folder to write.
        sizes: fields of the stand-in's ``Architecture``.
    """
    from transformers.utils import logging

    from saga_dist.standin.checkpoint import write_random_checkpoint

    logging.disable_progress_bar()
    return write_random_checkpoint(folder, **sizes)


class Machine(Section):
    """Machine on which the benchmarks ran."""

    processor: str
    """Model name of the processor."""
    cores: int
    """Number of logical cores."""
    torch: str
    """Version of torch."""
    device: str
    """Name of the first GPU, or ``cpu``."""


def machine() -> Machine:
    """Returns the description of this machine."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        processor=names[0] if names else platform.machine(),
        cores=os.cpu_count() or 1,
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )


def _status_bytes(name: str) -> int:
    """Returns a value of /proc/self/status in bytes; 0 when it is not there."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
