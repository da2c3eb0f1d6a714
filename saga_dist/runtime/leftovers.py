"""Record of what the processes of a run create outside of its run directory, and removal of what the dead left.

A process that ends by itself cleans up: vLLM its shared memory, the driver the private Ray's temporary folder. One that
is killed cannot. So the driver records the processes of this machine, their children and shared memory, and the
temporary folder in ``leftovers.json`` of the run directory. ``sweep`` removes only what a dead process left: it
compares process ids with start times and shared memory with inodes, and never removes a file that somebody maps. The
next start of the same run sweeps what the last one could not.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saga_dist.errors import OutputError
from saga_dist.utils import processes
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.processes import MachineId, ProcessId
from saga_dist.utils.shared_memory import SharedFile, mapped_files, remove_unmapped

log = logging.getLogger(__name__)

NAME = "leftovers.json"
FOLDER_PREFIX = "saga-"
"""Start of the names of temporary folders; no other folder is ever removed."""
MOST_TRACES = 256
"""Largest number of records kept, so that records of other machines do not pile up."""


@dataclass
class Trace:
    """Everything that one process created outside of the run directory."""

    driver: ProcessId
    """The run's main process, without which the other processes are of no use."""
    process: ProcessId
    """Process that created it: the driver or a worker."""
    children: set[ProcessId] = field(default_factory=set)
    """Processes that it started, and their children."""
    files: set[SharedFile] = field(default_factory=set)
    """Shared memory that it or a child has mapped."""
    folder: str = ""
    """Temporary folder; empty for none."""

    @property
    def is_dead(self) -> bool:
        """True when the process has ended, or the driver has and the process is to be ended."""
        started = (self.process, self.driver)
        return any(processes.is_alive(one) is False or processes.is_of_earlier_boot(one) for one in started)

    @property
    def remains(self) -> bool:
        """True when one of the processes runs, or one of the files exists."""
        return any(map(processes.is_alive, (self.process, *self.children))) or any(file.exists for file in self.files)


class Leftovers:
    """The record of one run; may be used by several threads.

    Args:
        home: the run directory; None to keep the record in memory only.
    """

    def __init__(self, home: Path | None) -> None:
        self._file = None if home is None else home / NAME
        self._lock = threading.Lock()
        self._traces = {trace.process: trace for trace in _read(self._file)}

    def note(self, pid: int, *, folder: Path | None = None) -> None:
        """Records what a living process of this machine has created so far, and removes what dead ones left.

        Args:
            pid: id of the process: the driver's or a worker's.
            folder: temporary folder that it uses.
        """
        driver, process = processes.identify(os.getpid()), processes.identify(pid)
        with self._lock:
            if driver is not None and process is not None:
                trace = self._traces.setdefault(process, Trace(driver, process))
                trace.children.update(processes.descendants(pid))
                trace.files |= mapped_files([pid, *(child.pid for child in trace.children)])
                trace.folder = str(folder or trace.folder)
            self._sweep()
            self._write()

    def sweep(self) -> None:
        """Removes what dead processes left: shared memory, temporary folders, children that still run."""
        with self._lock:
            if self._sweep():
                self._write()

    def close(self, *, deadline_s: float) -> None:
        """Waits until the workers have ended, removes what they left, and forgets the driver, which cleans up itself.

        Args:
            deadline_s: longest time to wait, seconds.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            self.sweep()
            with self._lock:
                driver = processes.identify(os.getpid())
                workers = [trace for trace in self._traces.values() if trace.driver == driver != trace.process]
                if not workers or time.monotonic() >= deadline:
                    self._forget(driver)
                    self._write()
                    return
            time.sleep(0.05)

    def _forget(self, driver: ProcessId | None) -> None:
        """Ends the processes of the private Ray that still run, and drops the driver's record."""
        trace = self._traces.pop(driver, None) if driver is not None else None
        for child in trace.children if trace is not None else ():
            processes.end(child, signal.SIGKILL)

    def _sweep(self) -> bool:
        """Removes what the dead left; returns True when the record changed."""
        dead = [trace for trace in self._traces.values() if trace.is_dead]
        for trace in dead:
            if removed := _remove(trace):
                log.info("removed what process %d left: %s", trace.process.pid, ", ".join(removed))
            if not trace.remains:
                del self._traces[trace.process]
        return bool(dead)

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            if self._traces:
                rows = [_to_json(trace) for trace in list(self._traces.values())[-MOST_TRACES:]]
                write_atomic(self._file, json.dumps(rows, indent=1).encode())
            else:
                self._file.unlink(missing_ok=True)
        except (OSError, OutputError) as error:
            log.warning("leftovers of killed workers cannot be recorded: %s", error)


def _remove(trace: Trace) -> list[str]:
    """Ends what still runs of a dead trace and removes its files and folder; returns their names."""
    started = (trace.process, *trace.children)
    for process in started:
        processes.end(process, signal.SIGKILL)
    deadline = time.monotonic() + 2.0
    while any(processes.is_alive(process) for process in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    removed = remove_unmapped(trace.files)
    folder = Path(trace.folder)
    if folder.name.startswith(FOLDER_PREFIX) and folder.is_dir() and folder.stat().st_uid == os.getuid():
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(str(folder))
    return removed


def _read(file: Path | None) -> list[Trace]:
    """Returns the records of a file; none when there is no file or it is damaged."""
    if file is None or not file.exists():
        return []
    try:
        return [_from_json(row) for row in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        log.warning("%s is damaged and ignored; files of an earlier process may be left", file)
        return []


def _to_json(trace: Trace) -> dict[str, Any]:
    return {
        "driver": asdict(trace.driver),
        "process": asdict(trace.process),
        "children": [asdict(child) for child in trace.children],
        "files": [asdict(file) for file in trace.files],
        "folder": trace.folder,
    }


def _from_json(row: dict[str, Any]) -> Trace:
    return Trace(
        _process(row["driver"]),
        _process(row["process"]),
        {_process(child) for child in row["children"]},
        {SharedFile(**file) for file in row["files"]},
        row["folder"],
    )


def _process(row: dict[str, Any]) -> ProcessId:
    return ProcessId(MachineId(**row["machine"]), row["pid"], row["started"])
