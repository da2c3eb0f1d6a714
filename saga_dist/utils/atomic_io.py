"""Atomic writes: a crash at any moment leaves either the old content of a file or folder or the new one."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_dist.errors import ConfigError

_crash_at, _, _crash_time = os.environ.get("SAGA_DIST_CRASH_AT", "").partition("@")
_crash_visits = itertools.count(1)


def crash_point(event: str, path: Path) -> None:
    """Ends this process with SIGKILL when ``SAGA_DIST_CRASH_AT`` names this event of this file; else does nothing.

    The variable serves crash tests: run a command with it set, then the same command without it; the result must equal
    that of an uninterrupted run. Examples: ``SAGA_DIST_CRASH_AT=renamed:step_00000100``, or ``synced:learner.json@2``
    for the second time that the event happens.

    Args:
        event: name of the event that has just happened.
        path: file or folder of the event; only its name is compared.
    """
    if _crash_at and _crash_at == f"{event}:{path.name}" and next(_crash_visits) == int(_crash_time or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def fsync_path(path: Path) -> None:
    """Flushes the content of a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file as a hex string; the file is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Writes ``content`` to ``path`` atomically: temporary file in the same folder, fsync, rename.

    Args:
        path: file to write or replace.
        content: the whole new content.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        crash_point("written", path)
        temporary.replace(path)
        crash_point("renamed", path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_output(path: Path, content: bytes, *, option: str) -> None:
    """Writes an output file of a command atomically.

    Args:
        path: file to write or replace.
        content: the whole new content.
        option: command line option that named the file, for the error message.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror or error})", where=str(path), fix=f"choose another {option}"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Creates the folder ``path`` atomically: yields a temporary folder to fill, and renames it at the end.

    After an exception the temporary folder is removed and ``path`` is unchanged.

    Args:
        path: a path that does not exist yet, or an empty folder.

    Raises:
        ConfigError: ``path`` is a file or a folder with content, or its parent folder cannot be used.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if not taken:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
            temporary.mkdir()
    except OSError as error:
        raise ConfigError(f"cannot be used ({error.strerror})", where=str(path), fix="choose another --out") from error
    if taken:
        raise ConfigError(
            "there is something already", where=str(path), expected="a new folder", fix="choose another --out"
        )
    try:
        yield temporary
        for file in temporary.iterdir():
            fsync_path(file)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(path.parent)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Replaces the folder ``path``: yields a temporary folder to fill, and puts it in the place of ``path`` at the end.

    A reader sees the old folder or the new one, or no folder for the moment between two renames. After an exception
    ``path`` is unchanged.

    Args:
        path: the folder to replace; it need not exist.

    Raises:
        OSError: the parent folder is missing or not writable, or the disk is full.
    """
    temporary, old = (path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        for inner in (*temporary.rglob("*"), temporary):
            fsync_path(inner)
        crash_point("filled", path)
        if path.exists():
            path.rename(old)
            crash_point("doomed", path)
        temporary.rename(path)
        crash_point("renamed", path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    fsync_path(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders of interrupted writes; call it only in the process that writes there."""
    for leftover in folder.glob(".*.tmp-????????"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
