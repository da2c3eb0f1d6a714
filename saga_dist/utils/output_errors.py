"""One line with exit code 2 for every error of the operating system while an output is written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_dist.errors import OutputError

_FIXES = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",
    errno.EISDIR: "it is a folder, name a file",
    errno.ENAMETOOLONG: "take a shorter name",
}
"""Advice for each error number."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers that only writing to a disk has."""
_PACKAGE_CACHE = re.compile(r"/runtime_resources/working_dir_files(/|$)")
"""Part of a path in which Ray keeps its copies of the working directories of jobs."""


@contextmanager
def output_errors(path: Path, *, option: str = "") -> Iterator[None]:
    """Turns an OSError inside the block, which writes ``path``, into an OutputError of one line.

    Args:
        path: file or folder that is written.
        option: option of the command line that named it; empty when none did.

    Raises:
        OutputError: the disk is full or read-only, a folder of the path is missing or not a folder, and the like.
    """
    try:
        yield
    except OSError as error:
        raise output_error(path, error, option=option) from error


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns an OSError that only a disk can cause into an OutputError; other OSErrors pass through.

    For files that libraries write by themselves, in caches and temporary folders.

    Raises:
        OutputError: a disk is full or read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        if isinstance(error.filename, str):
            raise output_error(Path(error.filename), error) from error
        raise OutputError(f"cannot write ({error.strerror})", fix=_FIXES[error.errno]) from error


def output_error(path: Path, error: OSError, *, option: str = "") -> OutputError:
    """Returns the error for an output that cannot be written.

    Args:
        path: file or folder that was written.
        error: error of the operating system.
        option: option of the command line that named it; empty when none did.
    """
    fixes = [_FIXES.get(error.errno or 0, "check the disk"), *([f"choose another {option}"] if option else [])]
    reason = error.strerror or " ".join(str(error).split())
    made = OutputError(f"cannot be written ({reason})", where=str(path.absolute()), fix=", or ".join(fixes))
    made.reason = reason
    return made


def os_error_of(problem: Exception) -> OSError:
    """Returns the OSError that a library reported in an exception of its own, as safetensors and faiss do.

    The number of the error is found in its text, as ``os error 28`` or as the words of the system for it.

    Args:
        problem: exception of the library.
    """
    text = " ".join(str(problem).split())
    numbered = re.search(r"os error (\d+)", text)
    number = int(numbered[1]) if numbered else next((code for code in _FIXES if os.strerror(code) in text), None)
    return OSError(text) if number is None else OSError(number, os.strerror(number))


def refuse_package_cache(path: Path, *, option: str) -> None:
    """Refuses an output in one of Ray's copies of a job's working directory.

    Ray removes such a copy after the job, and another submission gets another one, so that nothing would be resumed.

    Args:
        path: file or folder to write.
        option: option of the command line that names it.

    Raises:
        OutputError: the path is in such a copy.
    """
    resolved = os.path.realpath(path)
    if _PACKAGE_CACHE.search(resolved):
        raise OutputError(
            "is in Ray's copy of the job's working directory, which goes with the job",
            where=resolved,
            expected="a folder that outlives the job",
            fix=f"give {option} as an absolute path on a disk that the next submission sees too",
        )
