"""Errors of the operating system as one line: what is mapped, what passes, what libraries say in their own words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from saga_dist.errors import OutputError
from saga_dist.utils.output_errors import disk_errors, os_error_of, output_errors


def test_the_line_names_path_reason_fix_and_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError) as caught, output_errors(Path("run"), option="--run-dir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    what = "cannot be written (No space left on device); free space on this disk, or choose another --run-dir"
    assert str(caught.value) == f"{tmp_path}/run: {what}"
    assert caught.value.reason == "No space left on device"
    assert caught.value.exit_code == 2


def test_other_exceptions_pass() -> None:
    with pytest.raises(ValueError, match="ours"), output_errors(Path("run")):
        raise ValueError("ours")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC),
        ("I/O error: Permission denied (os error 13)", errno.EACCES),
        ("Error in FileIOWriter: could not open /x for writing: Read-only file system", errno.EROFS),
        ("something else", None),
    ],
)
def test_the_words_of_libraries_are_understood(text: str, number: int | None) -> None:
    found = os_error_of(RuntimeError(text))
    assert found.errno == number
    assert found.strerror == (None if number is None else os.strerror(number))


def test_only_what_a_disk_causes_is_mapped_everywhere() -> None:
    with (
        pytest.raises(OutputError, match=r"/cache/x: cannot be written .No space left on device.;"),
        disk_errors(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/x")
    with pytest.raises(OutputError, match=r"^cannot write .Read-only file system.; the file"), disk_errors():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(FileNotFoundError), disk_errors():
        raise FileNotFoundError(errno.ENOENT, "not ours")
