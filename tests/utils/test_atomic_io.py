"""What replaces a file or folder is whole, what a crash leaves is removed, and crash points kill only where asked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from saga_dist.errors import OutputError
from saga_dist.utils import atomic_io
from saga_dist.utils.atomic_io import crash_point, remove_leftovers, replaced_folder, write_atomic


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with replaced_folder(target) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(content)
            assert tree(target) == ({} if content == "one" else {"inner/file": "one"})
        assert tree(tmp_path) == {"model/inner/file": content}


@pytest.mark.parametrize("failing", ["fill", "rename"])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "file").write_text("old")
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if to == target and (self / "file").read_text() == "new":
            raise OSError(28, "No space left on device")
        return real(self, to)

    def replace() -> None:
        with replaced_folder(target) as folder:
            (folder / "file").write_text("new")
            if failing == "fill":
                raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "rename":
            patch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError, match="No space"):
            replace()
    assert tree(tmp_path) == {"model/file": "old"}


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".results.json.tmp-0123abcd").write_text("half")
    (tmp_path / ".model.tmp-0123abcd").mkdir()
    (tmp_path / ".model.tmp-0123abcd" / "weights").write_text("half")
    for name in ("results.json", ".hidden", "notes.tmp-0123abcd", ".tmp-"):
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert set(tree(tmp_path)) == {"results.json", ".hidden", "notes.tmp-0123abcd", ".tmp-"}
    remove_leftovers(tmp_path / "nowhere")


def test_a_crash_point_kills_at_its_event_file_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io, "_crash_at", "written:b")
    monkeypatch.setattr(atomic_io, "_crash_time", "2")
    child = os.fork()
    if child == 0:
        for name in ("a", "b", "c"):
            write_atomic(tmp_path / name, b"first")
        write_atomic(tmp_path / "b", b"second")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {name: (tmp_path / name).read_text() for name in "abc"} == dict.fromkeys("abc", "first")
    monkeypatch.setattr(atomic_io, "_crash_at", "")
    crash_point("written", tmp_path / "b")
