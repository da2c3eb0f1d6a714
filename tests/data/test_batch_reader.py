"""Images of micro-batches that threads read before the learner needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saga_dist.data.batch_reader import MAX_BATCHES, BatchReader
from saga_dist.data.image_sets import FolderImageSet
from saga_dist.data.images import augment
from saga_dist.errors import DataError
from saga_dist.types import MicroBatch
from saga_dist.utils.rng import counter_generator


def batch(step: int, index: int = 0, images: tuple[int, ...] = (3, 1, 2)) -> MicroBatch:
    return MicroBatch(step, index, images, (0,) * len(images), 100 * step + index, ())


class CountingReader:
    """Reads images of one pixel, its index and the seed, and counts how often."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def __call__(self, index: int, seed: int) -> np.ndarray:
        self.read.append((index, seed))
        return np.array([index, seed])

    def images_of(self, batch: MicroBatch) -> list[list[int]]:
        return [[index, batch.augmentation_seed] for index in batch.image_ids]


@pytest.fixture
def source() -> CountingReader:
    return CountingReader()


def reader_of(read: Callable[[int, int], np.ndarray], threads: int = 2) -> BatchReader:
    return BatchReader(read, lambda batch: batch.image_ids, num_threads=threads)


def taken(reader: BatchReader, batch: MicroBatch, *, again: bool = False) -> list[list[int]]:
    return [image.tolist() for image in reader.take(batch, again=again)]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_images_come_in_the_order_of_the_micro_batch_and_are_read_once(threads: int, source: CountingReader) -> None:
    reader = reader_of(source, threads)
    for expected in (batch(0), batch(0, 1)):
        reader.expect(expected)
        reader.expect(expected)
        assert taken(reader, expected) == source.images_of(expected)
    assert sorted(source.read) == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_images_are_read_while_nobody_waits(source: CountingReader) -> None:
    may_read, has_read = threading.Event(), threading.Event()

    def read(index: int, seed: int) -> np.ndarray:
        assert may_read.wait(10)
        has_read.set()
        return source(index, seed)

    reader = reader_of(read)
    reader.expect(batch(0))  # would not return if it waited
    assert not source.read
    may_read.set()
    assert has_read.wait(10)
    assert taken(reader, batch(0)) == source.images_of(batch(0))


def test_a_micro_batch_of_other_images_is_another_one(source: CountingReader) -> None:
    reader = reader_of(source)
    reader.expect(batch(0))
    for other in (batch(0, images=(5, 6)), replace(batch(0), augmentation_seed=7)):
        assert taken(reader, other) == source.images_of(other)


def test_images_are_kept_for_a_micro_batch_that_is_encoded_again(source: CountingReader) -> None:
    reader = reader_of(source)
    assert taken(reader, batch(1), again=True) == source.images_of(batch(1))
    taken(reader, batch(0, 5))
    assert taken(reader, batch(1)) == source.images_of(batch(1))
    assert len(source.read) == 6
    taken(reader, batch(1))
    assert len(source.read) == 9, "not kept after it was encoded in its own step"


def test_images_of_earlier_steps_are_dropped(source: CountingReader) -> None:
    reader = reader_of(source)
    for expected in (batch(0, 1), batch(1), batch(1, 1), batch(2)):
        reader.expect(expected)
    taken(reader, batch(1))
    assert [key[:2] for key in reader._held] == [(1, 1), (2, 0)]


def test_held_images_are_bounded_and_those_needed_first_stay(source: CountingReader) -> None:
    reader = reader_of(source)
    for step in reversed(range(3 * MAX_BATCHES)):
        reader.expect(batch(step))
    assert sorted(key[0] for key in reader._held) == list(range(MAX_BATCHES))
    dropped = batch(3 * MAX_BATCHES - 1)
    assert taken(reader, dropped) == source.images_of(dropped)


def test_a_process_reads_its_share_only(source: CountingReader) -> None:
    reader = BatchReader(source, lambda batch: batch.image_ids[1:], num_threads=2)
    reader.expect(batch(0))
    assert taken(reader, batch(0)) == [[1, 0], [2, 0]]
    assert sorted(source.read) == [(1, 0), (2, 0)]


def test_files_give_the_same_bits_and_the_same_error(image_folder: Path) -> None:
    """Two of the files are damaged; the first one in the order of the micro-batch is the error, when it is taken."""
    files = tuple(sorted(file.name for file in image_folder.iterdir()))
    images = FolderImageSet(image_folder, files, (1,) * len(files), np.zeros(len(files), np.int64), ("a",), 32)

    def read(index: int, seed: int) -> np.ndarray:
        generator = counter_generator(seed, index)
        return augment(images.image(index), generator, flip=True, shift=0.2, color_jitter=0.3, crop=0.5)

    for threads in (1, 4):
        reader, direct = reader_of(read, threads), reader_of(read, 0)
        good, bad = batch(0, images=(4, 0, 5, 1)), batch(1, images=(0, 3, 1, 2))
        reader.expect(good)
        reader.expect(bad)
        for mine, theirs in zip(reader.take(good, again=False), direct.take(good, again=False), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        messages = []
        for one in (reader, direct):
            with pytest.raises(DataError) as error:
                one.take(bad, again=False)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert "3.jpg" in messages[0]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Returns a folder of six JPEG files, of which 2.jpg and 3.jpg are damaged."""
    from PIL import Image

    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    for number in (2, 3):
        (tmp_path / f"{number}.jpg").write_bytes((tmp_path / f"{number}.jpg").read_bytes()[:300])
    return tmp_path
