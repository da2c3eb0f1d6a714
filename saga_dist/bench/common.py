"""What every bench shares: A/B timing in turns, peak memory in a process of its own, and the report.

Time is the processor time of this process on one thread unless a bench says otherwise: on a shared machine it is the
honest clock, and on an idle one it equals the wall clock.
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
    """How much work a bench does."""

    TINY = "tiny"
    """Seconds: for tests, figures mean nothing."""
    QUICK = "quick"
    """A minute or two on two cores."""
    FULL = "full"
    """The work that the bars are stated for."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One line of a bench: two medians and what they are worth."""

    case: str
    ours: float
    """Median."""
    other: float | None
    """Median of the alternative; None where there is nothing to compare with."""
    unit: str
    ratio: float | None
    """How many times better ours is; above 1 is better, whatever the unit."""
    bar: float | None
    """The ratio (or, without an alternative, the value) to reach; None where nothing is asked."""
    met: bool | None
    equal: bool
    """True when both gave the same result within the bench's tolerance."""
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole bench."""

    bench: str
    alternative: str
    """What ours is measured against."""
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """True when all results agreed."""
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
    """Returns the row of a time or a size: ratio = other / ours."""
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
    """Returns the row of a rate: ratio = ours / other."""
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
    """Repeated runs of one side."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    results: list[OursT] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """Median processor time, seconds."""
        return statistics.median(self.cpu_s)

    @property
    def wall(self) -> float:
        """Median wall time, seconds."""
        return statistics.median(self.wall_s)

    def run(self, work: Callable[[], OursT]) -> None:
        """Times one run."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)
        self.results.append(result)


def in_turns(
    ours: Callable[[], OursT], other: Callable[[], OtherT], repeats: int, *, warm_up: bool = True
) -> tuple[Timing[OursT], Timing[OtherT]]:
    """Returns the timings of both sides, run as A B, B A, A B …: what disturbs the machine disturbs both."""
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
    """Keeps torch on one thread meanwhile; other libraries follow OMP_NUM_THREADS, which the command sets."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(work: Callable[[], object]) -> int:
    """Returns by how many bytes this process's memory rose above where it was while ``work`` ran (Linux)."""
    gc.collect()
    with suppress(AttributeError):  # another C library than glibc keeps what it likes
        ctypes.CDLL(None).malloc_trim(0)  # freed memory of earlier work must not serve this one unseen
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the kernel forgets the highest value so far
    before = _status_bytes("VmRSS")
    work()
    return max(_status_bytes("VmHWM") - before, 0)


def in_own_process(function: Callable[..., OursT], *arguments: Any) -> OursT:
    """Returns ``function(*arguments)`` from a fresh process; memory of earlier work does not blur what it measures."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, *arguments).result()


def random_model(folder: Path, **sizes: Any) -> Path:
    """Returns ``folder`` with a random model of these sizes in it (fields of the stand-in's ``Architecture``)."""
    from transformers.utils import logging

    from saga_dist.standin.checkpoint import write_random_checkpoint

    logging.disable_progress_bar()
    return write_random_checkpoint(folder, **sizes)


class Machine(Section):
    """What figures were measured on."""

    processor: str
    cores: int
    torch: str
    device: str


def machine() -> Machine:
    """Returns this machine."""
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
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
