"""Copies of checkpoints on any filesystem that pyarrow supports: s3://, gs://, hdfs://, file://.

Object stores cannot rename, so the manifest is the commit marker: it is written after all other files and removed
before any of them. A folder without a valid manifest is not a checkpoint, at whatever point an upload was interrupted.
The local checkpoints are authoritative and the mirror is a copy: the caller counts mirror failures and does not end the
run because of them.

Checkpoints are stored in ``URI/<first 16 digits of the configuration's digest>/step_N/``: runs with different
configurations may share a URI, and a new cluster with the same configuration finds its own checkpoints.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from saga_dist.checkpoint.manifest import MANIFEST, damaged, folder_name, parse, step_of
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.utils.atomic_io import crash_point, fsync_path
from saga_dist.utils.output_files import make_folder, write_chunks, write_file

log = logging.getLogger(__name__)

_CHUNK = 8 * 2**20
_ResultT = TypeVar("_ResultT")


class CheckpointMirror:
    """Copies of one run's checkpoints on a pyarrow filesystem.

    Args:
        filesystem: filesystem that holds the copies.
        root: folder in the filesystem, created by the first upload.
        keep: number of newest checkpoints to keep; the best one is always kept.
        attempts: tries of each filesystem call before it fails.
        pause_s: seconds between the first two tries; doubled after every try.
    """

    def __init__(
        self, filesystem: fs.FileSystem, root: str, *, keep: int, attempts: int = 3, pause_s: float = 1.0
    ) -> None:
        self._fs, self._root, self._keep = filesystem, root.rstrip("/"), keep
        self._attempts, self._pause_s = attempts, pause_s

    def __str__(self) -> str:
        return f"{self._fs.type_name}:{self._root}"

    def steps(self) -> list[int]:
        """Returns the steps that have a manifest, ascending (not verified).

        Raises:
            CheckpointError: the filesystem cannot be read.
        """
        folders = {step: self._path(step, MANIFEST) for step in self._folders()}
        if not folders:
            return []
        infos = self._retry("look for manifests", lambda: self._fs.get_file_info(list(folders.values())))
        return sorted(step for step, info in zip(folders, infos, strict=True) if info.is_file)

    def upload(self, folder: Path, *, overwrite: bool = False) -> None:
        """Copies a valid local checkpoint to the mirror; does nothing when the mirror has the same manifest already.

        Args:
            folder: local folder of the checkpoint.
            overwrite: copy although the mirror has the same manifest, because its files are known to be damaged.

        Raises:
            CheckpointError: the filesystem cannot be read or written; the copy is incomplete and not committed.
            OSError: the local folder cannot be read.
        """
        step = step_of(folder.name)
        assert step is not None, folder
        manifest, marker = (folder / MANIFEST).read_bytes(), self._path(step, MANIFEST)
        existing = self._read(marker)
        if existing == manifest and not overwrite:
            return
        if existing is not None:  # its files are about to be overwritten, so it must stop being a checkpoint first
            self._retry("delete", lambda: self._fs.delete_file(marker))
        for name in sorted(parse(manifest, folder=folder.name, where=str(folder / MANIFEST))["files"]):
            self._copy(folder / name, self._path(step, name))
        crash_point("uploaded", folder)
        self._write(marker, manifest)
        crash_point("mirrored", folder)

    def retain(self, newest: int, *, best: int | None) -> None:
        """Updates ``latest`` and ``best``, and removes old checkpoints and incomplete uploads.

        Args:
            newest: step that was uploaded last; always kept.
            best: step of the best checkpoint; kept when the mirror has it. None or a negative number: there is none.

        Raises:
            CheckpointError: the filesystem cannot be read or written.
        """
        committed = self.steps()
        self._write(f"{self._root}/latest", f"{folder_name(newest)}\n".encode())
        if best is not None and best in committed:
            self._write(f"{self._root}/best", f"{folder_name(best)}\n".encode())
        for step in self._folders():
            if step not in {newest, best, *committed[-self._keep :]}:
                if step in committed:  # a partly removed folder must not look like a checkpoint
                    self._retry("delete", partial(self._fs.delete_file, self._path(step, MANIFEST)))
                self._retry("delete", partial(self._fs.delete_dir, self._path(step)))

    def download(self, step: int, folder: Path) -> None:
        """Copies the checkpoint of a step into a new local folder and syncs it; the files are not verified.

        Args:
            step: step of the checkpoint.
            folder: local folder, created here.

        Raises:
            DamagedCheckpoint: the manifest is damaged or missing, or a file is missing.
            CheckpointError: the filesystem cannot be read, or the manifest has another format.
            OSError, OutputError: the local disk cannot be written.
        """
        marker = self._path(step, MANIFEST)
        raw = self._read(marker)
        if raw is None:
            raise damaged(marker, "the file is missing")
        manifest = parse(raw, folder=folder_name(step), where=marker)
        make_folder(folder)
        for name in manifest["files"]:
            target = folder / name
            make_folder(target.parent)
            self._fetch(self._path(step, name), target)
            fsync_path(target)
        write_file(folder / MANIFEST, raw)
        fsync_path(folder / MANIFEST)
        for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
            fsync_path(inner)

    # ------------------------------------------------------------------ filesystem calls with retries

    def _path(self, step: int, name: str = "") -> str:
        return f"{self._root}/{folder_name(step)}" + (f"/{name}" if name else "")

    def _folders(self) -> list[int]:
        selector = fs.FileSelector(self._root, allow_not_found=True)
        infos = self._retry("list", lambda: self._fs.get_file_info(selector))
        steps = (step_of(info.base_name) for info in infos if info.type == fs.FileType.Directory)
        return sorted(step for step in steps if step is not None)

    def _read(self, path: str) -> bytes | None:
        def read() -> bytes | None:
            if not self._fs.get_file_info(path).is_file:
                return None
            with self._fs.open_input_stream(path, compression=None) as source:
                return bytes(source.read())

        return self._retry(f"read {path}", read)

    def _write(self, path: str, content: bytes) -> None:
        def write() -> None:
            with self._fs.open_output_stream(path, compression=None) as sink:
                sink.write(content)

        self._retry(f"write {path}", write)

    def _copy(self, source: Path, target: str) -> None:
        def copy() -> None:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with source.open("rb") as file, self._fs.open_output_stream(target, compression=None) as sink:
                shutil.copyfileobj(file, sink, _CHUNK)
            size, expected = self._fs.get_file_info(target).size, source.stat().st_size
            if size != expected:
                raise OSError(f"{size} bytes arrived instead of {expected}")

        self._retry(f"write {target}", copy)

    def _fetch(self, source: str, target: Path) -> None:
        def fetch() -> bool:
            if not self._fs.get_file_info(source).is_file:
                return False
            with self._fs.open_input_stream(source, compression=None) as stream:
                write_chunks(target, iter(partial(stream.read, _CHUNK), b""))
            return True

        if not self._retry(f"read {source}", fetch):
            raise damaged(source, "the file is missing")

    def _retry(self, what: str, call: Callable[[], _ResultT]) -> _ResultT:
        """Returns the result of ``call`` after up to ``attempts`` tries.

        Raises:
            CheckpointError: every try failed.
        """
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                return call()
            except (OSError, pa.ArrowException) as error:
                problem = error
                log.debug("%s: cannot %s: %s", self, what, error)
        raise CheckpointError(
            f"cannot {what} ({' '.join(str(problem).split())}; {self._attempts} tries)",
            where=f"checkpoint mirror {self}",
            fix="check checkpoint.mirror, the network and the permissions",
        ) from problem


def open_mirror(uri: str, *, run: str, keep: int) -> CheckpointMirror | None:
    """Returns the mirror at a URI; None when the URI is empty.

    Args:
        uri: URI of ``pyarrow.fs``: ``s3://bucket/folder?region=…``, ``gs://…``, ``hdfs://…``, ``file:///…``.
        run: name of the run's folder below the URI.
        keep: number of newest checkpoints to keep.

    Raises:
        ConfigError: pyarrow does not support the filesystem or cannot set it up.
    """
    if not uri:
        return None
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"checkpoint.mirror = {uri!r}: {' '.join(str(error).split())}",
            expected="a URI that pyarrow.fs opens, such as s3://bucket/folder or file:///mnt/folder",
        ) from error
    return CheckpointMirror(filesystem, f"{path.rstrip('/')}/{run}", keep=keep)
