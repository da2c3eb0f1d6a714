"""Identities of processes that outlive a restart: a process id alone may belong to another process later.

The functions read ``/proc``; where there is none they know no process.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class MachineId:
    """The machine, its boot and the process namespace (container) in which a process id is valid."""

    host: str
    """Host name."""
    boot: str
    """Random id of the boot; empty where the system has none."""
    namespace: str
    """Name of the namespace of process ids; empty where the system has none."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, not confused with a later process of the same number."""

    machine: MachineId
    """Machine on which the process runs or ran."""
    pid: int
    """Process id."""
    started: int
    """Start of the process, clock ticks since boot."""


@cache
def this_machine() -> MachineId:
    """Returns the machine of this process."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = str((PROC / "self/ns/pid").readlink())
    except OSError:
        boot = namespace = ""
    return MachineId(platform.node(), boot, namespace)


def identify(pid: int) -> ProcessId | None:
    """Returns the identity of a living process of this machine; None when there is none, or it is a zombie."""
    stat = _stat(pid)
    return None if stat is None else ProcessId(this_machine(), pid, stat[1])


def is_alive(process: ProcessId) -> bool | None:
    """Returns True when a process lives, False when it has ended, None when that cannot be known on this machine."""
    here = this_machine()
    return identify(process.pid) == process if process.machine == here and here.namespace else None


def is_of_earlier_boot(process: ProcessId) -> bool:
    """Returns True when a process ran on a machine of this name that was booted since."""
    then, now = process.machine, this_machine()
    return then.host == now.host and then.boot != now.boot and bool(then.boot and now.boot)


def descendants(pid: int) -> list[ProcessId]:
    """Returns the children of a process, their children, and so on."""
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))) is not None:
            children[stat[0]].append((int(entry.name), stat[1]))
    found: list[ProcessId] = []
    open_pids = [pid]
    while open_pids:
        for child, started in children.pop(open_pids.pop(), ()):
            found.append(ProcessId(this_machine(), child, started))
            open_pids.append(child)
    return found


def end(process: ProcessId, number: int) -> None:
    """Sends a signal to a process of this machine if it still lives."""
    if is_alive(process):
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def _stat(pid: int) -> tuple[int, int] | None:
    """Returns parent and start, in clock ticks since boot, of a living process; None for a zombie or no process."""
    try:
        text = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))
