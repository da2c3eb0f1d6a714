"""Image sets, in memory or on disk, and the class-disjoint splits of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from saga_dist.data.images import read_image, read_original
from saga_dist.data.left_out import LeftOut
from saga_dist.errors import DataError


class ImageSet(Protocol):
    """The images of one split, by index."""

    @property
    def labels_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """[I] int64 in 0 .. C-1, an index into ``class_names`` of this split."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """[C] names, in the order of the labels."""

    @property
    def attributes_IA(self) -> np.ndarray | None:  # noqa: N802  (shape suffix)
        """[I, A] int64 ground-truth attributes where the data has them."""

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, 3]."""

    def original(self, index: int) -> Image.Image:
        """Returns one image upright, RGB, at its own size, before it is scaled for training."""

    def name(self, index: int) -> str:
        """Returns the name of the image for messages and reports."""

    def digest(self) -> str:
        """Returns the sha256 that identifies the images, classes and labels of the set."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ArrayImageSet:
    """Images in memory.

    Args:
        images: uint8 [I, H, W, 3].
        labels_I: [I] integers in 0 .. C-1.
        class_names: [C] names.
        attributes_IA: [I, A] integers, ground-truth attributes; None for data without attributes.

    Raises:
        DataError: the images are not uint8 [I, H, W, 3], the other arrays have another number of rows, or a label is
            out of range.
    """

    images: np.ndarray
    labels_I: np.ndarray
    class_names: tuple[str, ...]
    attributes_IA: np.ndarray | None = None

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels_I, dtype=np.int64)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DataError(f"images of shape {images.shape}, {images.dtype}", expected="uint8 [I, H, W, 3]")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images with labels of shape {labels.shape}", expected="one label per image")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise DataError(
                f"labels from {labels.min()} to {labels.max()}",
                expected=f"0 to {len(self.class_names) - 1}, the classes",
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels_I", labels)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.attributes_IA is not None:
            attributes = np.asarray(self.attributes_IA, dtype=np.int64)
            if attributes.ndim != 2 or len(attributes) != len(images):
                raise DataError(f"attributes of shape {attributes.shape}", expected=f"[{len(images)}, A]")
            object.__setattr__(self, "attributes_IA", attributes)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, 3]."""
        image: np.ndarray = self.images[index]
        return image

    def original(self, index: int) -> Image.Image:
        """Returns the same image as ``image``, which is stored at one size only."""
        return Image.fromarray(np.ascontiguousarray(self.images[index]))

    def name(self, index: int) -> str:
        """Returns ``class name/index``."""
        return f"{self.class_names[self.labels_I[index]]}/{index}"

    def digest(self) -> str:
        """Returns the sha256 over pixels, labels and class names."""
        sha = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        sha.update(np.ascontiguousarray(self.images).data)
        sha.update(np.ascontiguousarray(self.labels_I).data)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class FolderImageSet:
    """Images on disk, read from their files on every access.

    Args:
        root: folder of the data set.
        files: [I] paths relative to the root.
        sizes_bytes: [I] size of each file when it was listed.
        labels_I: [I] int64 in 0 .. C-1.
        class_names: [C] names.
        image_size: side of the square that images are scaled to, pixels.
        attributes_IA: [I, A] int64, ground-truth attributes; None for data without attributes.
        banner: rows at the bottom of every image that are not part of it, pixels.
        fast_jpeg: decode large JPEG files at a reduced scale (see ``read_image``).
    """

    root: Path
    files: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    labels_I: np.ndarray
    class_names: tuple[str, ...]
    image_size: int
    attributes_IA: np.ndarray | None = None
    banner: int = 0
    fast_jpeg: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [image_size, image_size, 3].

        Raises:
            DataError: the file is damaged, or was removed after it was listed.
        """
        path = self.root / self.files[index]
        return read_image(path, self.image_size, banner=self.banner, fast_jpeg=self.fast_jpeg)

    def original(self, index: int) -> Image.Image:
        """Returns one image at its own size, without the banner.

        Raises:
            DataError: the file is damaged, or was removed after it was listed.
        """
        return read_original(self.root / self.files[index], banner=self.banner)

    def name(self, index: int) -> str:
        """Returns the path relative to the root."""
        return self.files[index]

    def digest(self) -> str:
        """Returns the sha256 over file names, sizes, labels and class names.

        The contents are not part of it, because that would read every image.
        """
        rows = [self.class_names, *zip(self.files, self.sizes_bytes, self.labels_I.tolist(), strict=True)]
        return hashlib.sha256(repr(rows).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Class-disjoint parts of a data set.

    Args:
        train: images of the training classes.
        val: images of classes held out of the training classes for model selection; None without such classes.
        test: images of unseen classes, for evaluation only.
        probe: images of further classes to fit linear probes on; None for data without attributes.
        attribute_names: [A] names of the attributes; empty for data without attributes.
        gallery: for data with a separate gallery, the images that the queries in ``test`` search, with the labels and
            class names of ``test``; None when every test image searches all other test images.
        left_out: files of the data set's folder that are in no split, with the reason for each.

    Raises:
        DataError: ``gallery`` and ``test`` have different class names.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    probe: ImageSet | None = None
    attribute_names: tuple[str, ...] = ()
    gallery: ImageSet | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        if self.gallery is not None and self.gallery.class_names != self.test.class_names:
            raise DataError("the classes of gallery and test differ", expected="one list of class names for both")

    def named(self, name: str) -> ImageSet:
        """Returns a split by name.

        Args:
            name: ``train``, ``val``, ``test``, ``gallery`` or ``probe``.

        Raises:
            DataError: the name is unknown, or this data set has no such split.
        """
        images = dict(self._parts()).get(name)
        if images is None:
            raise DataError(f"no split {name!r} in this data set", expected=f"one of {', '.join(self.names)}")
        return images

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits that this data set has."""
        return tuple(name for name, images in self._parts() if images is not None)

    def _parts(self) -> tuple[tuple[str, ImageSet | None], ...]:
        return (
            ("train", self.train),
            ("val", self.val),
            ("test", self.test),
            ("gallery", self.gallery),
            ("probe", self.probe),
        )

    def split_hash(self) -> str:
        """Returns the sha256 over the digests of all splits, which identifies images, classes and their division."""
        rows = [(name, self.named(name).digest()) for name in self.names]
        return hashlib.sha256(repr(rows).encode()).hexdigest()
