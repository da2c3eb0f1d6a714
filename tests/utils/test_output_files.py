"""Lines are appended whole, whatever was cut off before; chunks of a stream, whose own errors are not the disk's."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_dist.errors import OutputError
from saga_dist.utils.atomic_io import probe_output
from saga_dist.utils.output_files import append_line, copy_file, write_chunks


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "new\n"),
        ("one\n", "one\nnew\n"),
        ("one\ntw", "one\nnew\n"),
        ("cut of", "new\n"),
        ("one\n" + "x" * 200_000, "one\nnew\n"),
    ],
)
def test_a_line_follows_the_last_whole_one(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    if before:
        file.write_text(before)
    append_line(file, "new")
    assert file.read_text() == after


def test_a_line_that_does_not_fit_leaves_none_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("one\n")
    real = io.open

    class Filling(io.FileIO):
        room = 3

        def write(self, content: Any) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = super().write(bytes(content)[: self.room])
            self.room -= written
            return written

    monkeypatch.setattr(io, "open", lambda path, mode, *rest, **named: Filling(path, mode.replace("b", "")))
    with pytest.raises(OutputError, match="No space left on device"):
        append_line(file, "a long line")
    monkeypatch.setattr(io, "open", real)
    assert file.read_text() == "one\n"


def test_chunks_arrive_in_order_and_errors_of_the_source_pass(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one "
        yield b"two"
        raise ConnectionResetError("the mirror hung up")

    with pytest.raises(ConnectionResetError):
        write_chunks(tmp_path / "copy", chunks())
    assert (tmp_path / "copy").read_bytes() == b"one two"
    with pytest.raises(OutputError, match="its folder does not exist"):
        write_chunks(tmp_path / "gone" / "copy", [b"one"])
    copy_file(tmp_path / "copy", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"one two"


def test_a_probe_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    probe_output(tmp_path / "results.json", option="--json")
    probe_output(tmp_path / "new.json", option="--json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"results.json": "old"}
    with pytest.raises(OutputError, match="it is a folder, name a file, or choose another --json"):
        probe_output(tmp_path, option="--json")


def test_a_disk_that_is_full_only_when_it_syncs_is_found_by_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        probe_output(tmp_path / "results.json", option="--json")
    assert list(tmp_path.iterdir()) == []
