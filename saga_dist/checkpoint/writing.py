"""Atomic write of a checkpoint folder: after a crash at any moment the folder is either complete or absent.

All files are written into ``step_N.tmp-<id>/``; each is synced, then the manifest, then the folders. The folder is then
renamed and its parent is synced.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saga_dist.checkpoint.manifest import MANIFEST, seal
from saga_dist.errors import CheckpointError
from saga_dist.utils.atomic_io import crash_point, file_sha256, fsync_path
from saga_dist.utils.output_files import make_folder, write_file


def write_folder(final: Path, step: int, write_files: Callable[[Path], None], extra: Mapping[str, Any]) -> None:
    """Writes a checkpoint folder; an error leaves nothing behind.

    Args:
        final: folder of the checkpoint, which must not exist; its parent must exist.
        step: number of optimizer steps done.
        write_files: function that writes the training state into the folder it receives.
        extra: JSON data to keep in the manifest.

    Raises:
        OSError, OutputError: the disk is full or not writable.
        CheckpointError: ``write_files`` wrote something other than plain files and folders.
    """
    temporary = temporary_beside(final)
    try:
        make_folder(temporary)
        crash_point("begun", final)
        write_files(temporary)
        files = {}
        for path in _plain_files(temporary):
            fsync_path(path)
            files[path.relative_to(temporary).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            crash_point("synced", path)
        write_file(temporary / MANIFEST, seal(step, files, extra))
        crash_point("written", temporary / MANIFEST)
        fsync_path(temporary / MANIFEST)
        for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            fsync_path(folder)
        crash_point("synced", final)
        temporary.rename(final)
        crash_point("renamed", final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # exists only when something above failed
    fsync_path(final.parent)
    crash_point("committed", final)


def temporary_beside(final: Path) -> Path:
    """Returns a new path beside a checkpoint whose name does not match that of a checkpoint."""
    return final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")


def _plain_files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, sorted by path.

    Raises:
        CheckpointError: an entry is a symbolic link, or neither a file nor a folder.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError("not a plain file", where=str(path), expected="files and folders only")
        if path.is_file():
            yield path
