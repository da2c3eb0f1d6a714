"""Shared memory is found by who has mapped it, and removed only when nobody has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import pytest

from saga_dist.utils.shared_memory import FOLDER, SharedFile, mapped_files, remove_unmapped

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs /dev/shm")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=4096)
    resource_tracker.unregister(made._name, "shared_memory")  # type: ignore[attr-defined]
    yield made
    made.close()
    (FOLDER / made.name).unlink(missing_ok=True)


def test_memory_is_removed_only_when_nobody_maps_it(memory: SharedMemory) -> None:
    (file,) = (file for file in mapped_files([os.getpid()]) if file.name == memory.name)
    assert remove_unmapped([file]) == [] and file.exists
    memory.close()
    assert file not in mapped_files([os.getpid()])
    assert remove_unmapped([file]) == [memory.name]
    assert not file.exists


def test_a_later_file_of_the_same_name_stays(memory: SharedMemory) -> None:
    (file,) = (file for file in mapped_files([os.getpid()]) if file.name == memory.name)
    memory.close()
    assert remove_unmapped([SharedFile(file.name, file.inode + 1)]) == []
    assert file.exists
