"""Plain writes: files inside a folder that appears as a whole, and files to which lines are appended.

Together with ``atomic_io`` this is the only way in which the package writes files, so that every error of the operating
system is one line with the path (``output_errors``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.utils.directory_owner import check_owner
from saga_dist.utils.output_errors import os_error_of, output_errors

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 2**20
_TAIL = 2**16
"""Bytes that are read at once while the last line break of a file is looked for."""


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; does nothing when it exists.

    Raises:
        OutputError: it cannot be created, or the directory that holds it was taken over by another process.
    """
    check_owner(path)
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file, not atomically: for files of a folder that is renamed when it is complete.

    Args:
        path: file to write.
        content: the whole content; text is written as UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    with output_errors(path):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_to_write(path: Path) -> Iterator[BufferedWriter]:
    """Opens a file for writing, not atomically, as ``write_file`` does.

    Raises:
        OutputError: an OSError was raised inside the block.
    """
    with output_errors(path), path.open("wb") as file:
        yield file


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes the chunks of a file as they come, not atomically.

    Args:
        path: file to write.
        chunks: parts of the content; an exception raised by the iterator passes through.

    Raises:
        OutputError: the file cannot be written.
    """
    with ExitStack() as opened:
        with output_errors(path):
            file = opened.enter_context(path.open("wb", buffering=0))
        for chunk in chunks:
            rest = memoryview(chunk)
            with output_errors(path):
                while rest:
                    rest = rest[file.write(rest) :]


def copy_file(source: Path, target: Path) -> None:
    """Copies the content of a file, not atomically.

    Raises:
        OSError: ``source`` cannot be read.
        OutputError: ``target`` cannot be written.
    """
    with source.open("rb") as file:
        write_chunks(target, iter(partial(file.read, _CHUNK_BYTES), b""))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a safetensors file, not atomically.

    Args:
        path: file to write.
        tensors: contiguous tensors by name, on any device, which share no memory.
        metadata: texts for the file's header.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with output_errors(path):
        try:
            save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # raised by safetensors when the disk is full
            raise os_error_of(error) from error


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file, which is created if it is missing; the line is written completely or not at all.

    A last line without a line break, which a crash or a full disk left, is removed first.

    Args:
        path: file of lines.
        line: line without its line break.

    Raises:
        OutputError: the file cannot be written.
    """
    check_owner(path)
    with output_errors(path), path.open("r+b" if path.exists() else "x+b", buffering=0) as file:
        end = _end_of_last_line(file)
        file.truncate(end)
        rest = f"{line}\n".encode()
        file.seek(end)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def _end_of_last_line(file: FileIO) -> int:
    """Returns the position after the last line break of a file; 0 when there is none."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - _TAIL)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0
