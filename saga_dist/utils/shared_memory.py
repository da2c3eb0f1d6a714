"""Files of POSIX shared memory: which processes have mapped them, and removal of those that nobody maps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saga_dist.utils.processes import PROC

FOLDER = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class SharedFile:
    """One file of shared memory, not confused with a later file of the same name."""

    name: str
    """Name of the file in ``FOLDER``."""
    inode: int
    """Inode of the file."""

    @property
    def exists(self) -> bool:
        """True while the file exists under its name."""
        try:
            return (FOLDER / self.name).stat().st_ino == self.inode
        except OSError:
            return False


def mapped_files(pids: Iterable[int]) -> set[SharedFile]:
    """Returns the files of shared memory that any of these processes has mapped and that still have a name.

    The inode is compared and not the name, because a semaphore is mapped under a temporary name.
    """
    if not FOLDER.is_dir():
        return set()
    inodes = {inode for pid in pids for inode in _mapped_inodes(pid)}
    return {SharedFile(entry.name, entry.inode()) for entry in os.scandir(FOLDER) if entry.inode() in inodes}


def remove_unmapped(files: Iterable[SharedFile]) -> list[str]:
    """Removes those of the files that still exist and that no process has mapped; returns their names."""
    files = list(files)
    if not files:
        return []
    mapped = mapped_files(int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal())
    removed = []
    for file in files:
        path = FOLDER / file.name
        with suppress(OSError):  # another process removed it, or it belongs to another user
            if file not in mapped and file.exists:
                path.unlink()
                removed.append(file.name)
    return removed


def _mapped_inodes(pid: int) -> set[int]:
    """Returns the inodes of the file system of ``FOLDER`` that a process has mapped; empty without access to it."""
    number = FOLDER.stat().st_dev
    device = f"{os.major(number):02x}:{os.minor(number):02x}"
    try:
        lines = (PROC / str(pid) / "maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    parts = (line.split(maxsplit=5) for line in lines)
    return {int(fields[4]) for fields in parts if fields[3] == device and fields[4] != "0"}
