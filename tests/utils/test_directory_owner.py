"""An output has one writer at a time; who is gone is found by the lock, or on another host by a counter that stands."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from saga_dist.errors import OutputError
from saga_dist.utils import directory_owner
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.directory_owner import OWNER_NAME, owned_directory, owned_output
from saga_dist.utils.output_files import append_line, make_folder
from saga_dist.utils.owner_record import Owner

HOLD = """
import sys, time
from pathlib import Path
from saga_dist.utils.directory_owner import owned_directory
with owned_directory(Path(sys.argv[1]), option="--run-dir"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the directory."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != OWNER_NAME}


def other_owner(file: Path, *, beat: int = 1, host: str = "gpu7") -> bytes:
    """Writes the owner's file as a process on another host would."""
    owner = Owner("0" * 32, "another boot", host, 4242, "2026-01-02 03:04:05 UTC", "saga-dist train")
    file.write_bytes(owner.content(beat))
    return file.read_bytes()


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        before = content(tmp_path)
        line = rf"{tmp_path}: is being written by host {socket.gethostname()}, pid {process.pid}, started 20.* UTC"
        with pytest.raises(OutputError, match=line), owned_directory(tmp_path, option="--run-dir"):
            pytest.fail("two owners")
        assert content(tmp_path) == before


def test_a_killed_owner_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_owner.time, "sleep", lambda seconds: pytest.fail("nothing is waited for"))
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / OWNER_NAME).exists()
        with owned_directory(tmp_path, option="--run-dir"):
            assert Owner.parse((tmp_path / OWNER_NAME).read_bytes()).pid == os.getpid()  # type: ignore[union-attr]


def test_a_forked_child_of_a_killed_owner_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = HOLD.replace('print("held", flush=True)', "if not os.fork():\n        print(os.getpid(), flush=True)")
    command = [sys.executable, "-c", f"import os{code}", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    try:
        os.kill(child, 0)
        with owned_directory(tmp_path, option="--run-dir"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_nothing_stays_after_an_orderly_end(tmp_path: Path) -> None:
    with owned_directory(tmp_path / "a" / "run", option="--run-dir"):
        assert (tmp_path / "a" / "run" / OWNER_NAME).stat().st_size == 2048
    assert list((tmp_path / "a" / "run").iterdir()) == []
    with pytest.raises(RuntimeError), owned_directory(tmp_path / "a" / "run", option="--run-dir"):
        raise RuntimeError
    assert list((tmp_path / "a" / "run").iterdir()) == []


def test_a_claim_within_a_claim_ends_nothing(tmp_path: Path) -> None:
    with owned_directory(tmp_path, option="--run-dir"):
        with owned_directory(tmp_path, option="--out"):
            pass
        with pytest.raises(BlockingIOError), (tmp_path / OWNER_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_has_its_owner_beside_it(tmp_path: Path) -> None:
    with owned_output(tmp_path / "new" / "photos.arrow", option="--out"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".photos.arrow.owner.json"]
    assert list((tmp_path / "new").iterdir()) == []


# ---------------------------------------------------------------------- owners whose lock says nothing


@pytest.fixture
def short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_owner, "WATCH_S", 0.2)
    monkeypatch.setattr(directory_owner, "_POLL_S", 0.02)


@pytest.mark.usefixtures("short_watch")
def test_the_owner_on_another_host_is_taken_over_when_its_counter_stands(tmp_path: Path) -> None:
    other_owner(tmp_path / OWNER_NAME)
    started = time.monotonic()
    with owned_directory(tmp_path, option="--run-dir"):
        assert time.monotonic() - started >= 0.2


@pytest.mark.usefixtures("short_watch")
@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_the_owner_on_another_host_is_respected_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    file = tmp_path / OWNER_NAME
    other_owner(file)
    real = time.sleep

    def beat(seconds: float) -> None:
        other_owner(file, beat=2)
        os.utime(file, (time.time() + skew_s,) * 2)
        real(seconds)

    monkeypatch.setattr(directory_owner.time, "sleep", beat)
    line = r"host gpu7, pid 4242, started 2026-01-02 03:04:05 UTC \(saga-dist train\); wait until it ends or stop it"
    with pytest.raises(OutputError, match=line), owned_directory(tmp_path, option="--run-dir"):
        pytest.fail("two owners")
    assert Owner.parse(file.read_bytes()).host == "gpu7"  # type: ignore[union-attr]


@pytest.mark.usefixtures("short_watch")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_counter_decides_on_this_host_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory_owner.fcntl, "flock", flock)
    monkeypatch.setattr(directory_owner, "BEAT_S", 0.02)
    with owned_directory(tmp_path, option="--run-dir"):
        monkeypatch.setattr(directory_owner, "_claims", {})  # as another process sees it
        with (
            pytest.raises(OutputError, match="is being written by host"),
            owned_directory(tmp_path, option="--run-dir"),
        ):
            pytest.fail("two owners")
    monkeypatch.setattr(directory_owner, "_claims", {})
    with owned_directory(tmp_path, option="--run-dir"):
        pass


def test_another_error_of_the_lock_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(directory_owner.fcntl, "flock", flock)
    with pytest.raises(OutputError, match="cannot be written"), owned_directory(tmp_path, option="--run-dir"):
        pytest.fail("no owner")


# ---------------------------------------------------------------------- owners who lost their directory


def refused_to_write(run: Path) -> None:
    for write in (
        lambda: write_atomic(run / "results.json", b"{}"),
        lambda: append_line(run / "metrics.jsonl", "{}"),
        lambda: make_folder(run / "rollouts"),
    ):
        with pytest.raises(OutputError, match=f"{run}: was removed, or another process took it over"):
            write()


def test_who_was_taken_over_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_owner, "BEAT_S", 0.01)
    with owned_directory(tmp_path, option="--run-dir"):
        write_atomic(tmp_path / "before.json", b"{}")
        theirs = other_owner(tmp_path / OWNER_NAME)
        deadline = time.monotonic() + 10
        while not next(iter(directory_owner._claims.values()))._lost and time.monotonic() < deadline:
            time.sleep(0.01)
        refused_to_write(tmp_path)
        write_atomic(tmp_path.parent / "elsewhere.json", b"{}")
    assert (tmp_path / OWNER_NAME).read_bytes() == theirs
    assert content(tmp_path) == {"before.json": b"{}"}


def test_a_directory_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with owned_directory(run, option="--run-dir"):
        (run / OWNER_NAME).unlink()
        run.rmdir()
        refused_to_write(run)
    assert not run.exists()


def test_the_heartbeat_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_owner, "BEAT_S", 0.01)
    with owned_directory(tmp_path, option="--run-dir"):
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / OWNER_NAME).read_bytes())["beat"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
