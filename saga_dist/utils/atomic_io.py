"""Atomic writes: a crash at any moment leaves either the old content of a file or folder or the new one."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from saga_dist.errors import CheckpointError, OutputError
from saga_dist.utils.directory_owner import check_owner
from saga_dist.utils.output_errors import output_errors, refuse_package_cache

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


def sha256_of_input(path: Path) -> str:
    """Returns ``file_sha256`` of a file that a user named.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror or error})", where=str(path), fix="check the permissions and the disk"
        ) from error


def write_atomic(path: Path, content: bytes | memoryview, *, option: str = "") -> None:
    """Writes ``content`` to ``path`` atomically: temporary file in the same folder, fsync, rename.

    Args:
        path: file to write or replace.
        content: the whole new content.
        option: option of the command line that named the file, for error messages; empty when none did.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or the directory was taken over by another
            process; ``path`` is unchanged.
    """
    with replaced_file(path, option=option) as file:
        file.write(content)


@contextmanager
def replaced_file(path: Path, *, option: str = "") -> Iterator[BufferedWriter]:
    """Replaces the file ``path``: yields a temporary file, open for writing, and puts it in its place at the end.

    After an exception ``path`` is unchanged. The arguments and errors are those of ``write_atomic``.
    """
    check_owner(path)
    temporary = temporary_beside(path)
    with output_errors(path, option=option):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            crash_point("written", path)
            temporary.replace(path)
            crash_point("renamed", path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)


def probe_output(path: Path, *, option: str) -> None:
    """Checks that a file can be written, before the work whose result it is to hold.

    Args:
        path: file to write or replace; it is not changed.
        option: option of the command line that names it.

    Raises:
        OutputError: it cannot be written.
    """
    refuse_package_cache(path, option=option)
    with output_errors(path, option=option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb") as file:
                file.write(b"0")
                file.flush()
                os.fsync(file.fileno())  # a full disk may show only here
        finally:
            temporary.unlink(missing_ok=True)


def require_new(path: Path, *, option: str) -> None:
    """Checks that ``path`` does not exist yet or is an empty folder.

    Args:
        path: folder that is to be written.
        option: option of the command line that names it.

    Raises:
        OutputError: it is a file, or a folder with content, or cannot be looked at.
    """
    with output_errors(path, option=option):
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise OutputError(
            "there is something already", where=str(path), expected="a new folder", fix=f"choose another {option}"
        )


@contextmanager
def new_folder(path: Path, *, option: str = "--out") -> Iterator[Path]:
    """Creates the folder ``path`` atomically: yields a temporary folder to fill, and renames it at the end.

    After an exception the temporary folder is removed and ``path`` is unchanged.

    Args:
        path: a path that does not exist yet, or an empty folder.
        option: option of the command line that names it.

    Raises:
        OutputError: ``path`` is a file or a folder with content, or cannot be written.
    """
    require_new(path, option=option)
    temporary = temporary_beside(path)
    with output_errors(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
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
        OutputError: the parent folder is missing or not writable, or the disk is full.
    """
    check_owner(path)
    temporary, old = temporary_beside(path), temporary_beside(path)
    with output_errors(path):
        try:
            temporary.mkdir()
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


def temporary_beside(path: Path) -> Path:
    """Returns a new path in the same folder that ``remove_leftovers`` removes there."""
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders of interrupted writes; call it only in the process that writes there."""
    for leftover in folder.glob(".*.tmp-????????"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
