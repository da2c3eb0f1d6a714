"""Reads the training images of micro-batches in threads, before the learner needs them.

A thread reads and augments one image at a time. Image files are decoded by Pillow, which releases the interpreter's
lock, so the learner's thread works on meanwhile. An image is a function of its index and the seed of its micro-batch,
so it does not depend on the thread or the time at which it was read.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from saga_dist.types import MicroBatch

MAX_BATCHES = 8
"""Largest number of micro-batches whose images are held. A batch of 64 images of 224 x 224 pixels takes 10 MB."""

_Key = tuple[int, int, int, tuple[int, ...]]
_Images = list[Future[np.ndarray]]


class BatchReader:
    """Provides the images of micro-batches, which threads may have read before.

    It holds the images of expected micro-batches, and of those that will be encoded again in their own step: at most
    ``MAX_BATCHES``, those that are used first.

    Args:
        read: returns an image from its index and the augmentation seed of its micro-batch; called in threads.
        share: returns the indices of a micro-batch that this process reads, its share in a learner of several.
        num_threads: number of threads; 0: images are read by the caller of ``take``, and none are held.
    """

    def __init__(
        self,
        read: Callable[[int, int], np.ndarray],
        share: Callable[[MicroBatch], tuple[int, ...]],
        *,
        num_threads: int,
    ) -> None:
        self._read, self._share = read, share
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="image reader") if num_threads else None
        self._held: dict[_Key, _Images] = {}

    def expect(self, batch: MicroBatch) -> None:
        """Starts reading the images of a micro-batch, unless they are held; does not wait."""
        if self._threads is not None and _key(batch) not in self._held:
            self._hold(_key(batch), self._start(self._threads, batch))

    def take(self, batch: MicroBatch, *, again: bool) -> list[np.ndarray]:
        """Returns this process's images of a micro-batch, in its order.

        Args:
            batch: the micro-batch.
            again: True when it will be taken once more, so that its images are kept; False when its step is open, so
                that images of earlier steps are dropped.

        Raises:
            DataError: an image cannot be read; it is the first such image in the order of the micro-batch.
        """
        if self._threads is None:
            return [self._read(index, batch.augmentation_seed) for index in self._share(batch)]
        reading = self._held.pop(_key(batch), None) or self._start(self._threads, batch)
        images = [image.result() for image in reading]
        if again:
            self._hold(_key(batch), reading)
        else:
            for key in [key for key in self._held if key[0] < batch.step]:
                self._drop(key)
        return images

    def _start(self, threads: ThreadPoolExecutor, batch: MicroBatch) -> _Images:
        return [threads.submit(self._read, index, batch.augmentation_seed) for index in self._share(batch)]

    def _hold(self, key: _Key, images: _Images) -> None:
        """Holds the images of a micro-batch; if there are too many, those that are used last are dropped."""
        self._held[key] = images
        while len(self._held) > MAX_BATCHES:
            self._drop(max(self._held))

    def _drop(self, key: _Key) -> None:
        for image in self._held.pop(key):
            image.cancel()


def _key(batch: MicroBatch) -> _Key:
    return batch.step, batch.index, batch.augmentation_seed, batch.image_ids
