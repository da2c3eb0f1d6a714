"""What a killed process left behind is removed by the next start of its run, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_dist.runtime.leftovers import NAME, Leftovers
from saga_dist.utils.processes import identify, is_alive, this_machine
from saga_dist.utils.shared_memory import FOLDER

pytestmark = pytest.mark.skipif(not this_machine().namespace, reason="needs /proc")

DRIVER = """
import os, subprocess, sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from saga_dist.runtime.leftovers import Leftovers
memory = SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
Leftovers(Path(sys.argv[1])).note(os.getpid(), folder=Path(sys.argv[2]))
print(memory.name, child.pid, flush=True)
sys.stdin.read()
"""


class Driver:
    """A process with shared memory, a child and a temporary folder, which it has recorded."""

    def __init__(self, home: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="saga-", dir=home))
        (self.folder / "session").touch()
        command = [sys.executable, "-c", DRIVER, str(home), str(self.folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        name, pid = self.process.stdout.readline().split()
        self.memory, self.child = FOLDER / name, identify(int(pid))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def traces(self) -> list[bool]:
        """Whether the memory, the folder and the child exist."""
        assert self.child is not None
        return [self.memory.exists(), self.folder.exists(), is_alive(self.child) is True]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    made = Driver(tmp_path)
    yield made
    made.kill()
    made.memory.unlink(missing_ok=True)
    if made.child is not None and is_alive(made.child):
        os.kill(made.child.pid, signal.SIGKILL)


def test_the_next_start_removes_what_a_killed_driver_left(driver: Driver, tmp_path: Path) -> None:
    Leftovers(tmp_path).sweep()
    assert driver.traces == [True, True, True], "it lives"
    driver.kill()
    assert driver.traces == [True, True, True], "nobody cleaned up"
    Leftovers(tmp_path).sweep()
    assert driver.traces == [False, False, False]
    assert not (tmp_path / NAME).exists()


def changed(record: Path, change: dict[str, Any], key: str) -> None:
    (row,) = json.loads(record.read_text())
    row[key] = {**row[key], **change} if isinstance(row[key], dict) else [{**one, **change} for one in row[key]]
    record.write_text(json.dumps([row]))


@pytest.mark.parametrize(
    ("key", "change", "stays"),
    [
        ("children", {"started": 1}, [False, False, True]),
        ("files", {"inode": 1}, [True, False, False]),
    ],
)
def test_a_later_process_or_file_of_the_same_name_stays(
    key: str, change: dict[str, Any], stays: list[bool], driver: Driver, tmp_path: Path
) -> None:
    driver.kill()
    changed(tmp_path / NAME, change, key)
    Leftovers(tmp_path).sweep()
    assert driver.traces == stays


def test_the_record_of_another_machine_is_kept_and_nothing_removed(driver: Driver, tmp_path: Path) -> None:
    driver.kill()
    machine = {"machine": {"host": "elsewhere", "boot": "b", "namespace": "n"}}
    for key in ("driver", "process"):
        changed(tmp_path / NAME, machine, key)
    record = (tmp_path / NAME).read_text()
    Leftovers(tmp_path).sweep()
    assert driver.traces == [True, True, True]
    assert (tmp_path / NAME).read_text() == record


def test_no_folder_but_a_temporary_one_of_ours_is_removed(driver: Driver, tmp_path: Path) -> None:
    driver.kill()
    (precious := tmp_path / "photographs").mkdir()
    (row,) = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps([{**row, "folder": str(precious)}]))
    Leftovers(tmp_path).sweep()
    assert precious.is_dir()
    shutil.rmtree(driver.folder)


def test_a_worker_that_is_killed_while_the_run_goes_on_leaves_nothing(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    leftovers, worker = Leftovers(tmp_path), Driver(elsewhere)
    leftovers.note(worker.process.pid)
    worker.kill()
    leftovers.note(os.getpid())
    assert worker.traces == [False, True, False], "its folder is in the record of another run"
    leftovers.close(deadline_s=5.0)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"driver": 1}]', '{"a": 1}'])
def test_a_damaged_record_is_ignored(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_text(content)
    Leftovers(tmp_path).sweep()
    assert "is damaged and ignored" in caplog.text
