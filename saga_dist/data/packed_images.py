"""Images that lie within larger files, such as the members of a tar archive, and are read from there."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from saga_dist.data.image_sets import FolderImageSet
from saga_dist.data.images import read_image, read_original
from saga_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of an image within a file."""

    file: str
    """Path of the file, relative to the root of the data set."""
    offset: int
    """Offset of the first byte."""
    size: int
    """Number of bytes."""


@dataclass(frozen=True, eq=False)
class PackedImageSet(FolderImageSet):
    """Images within larger files; ``files`` are the images' names, and ``sizes_bytes`` their sizes within the files.

    Args:
        places: [I] bytes of each image.
    """

    places: tuple[Place, ...] = ()

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [image_size, image_size, 3].

        Raises:
            DataError: the image is damaged, or its file was removed or cut off after it was listed.
        """
        name = self.root / self.files[index]
        return read_image(name, self.image_size, banner=self.banner, fast_jpeg=self.fast_jpeg, file=self._open(index))

    def original(self, index: int) -> Image.Image:
        """Returns one image at its own size.

        Raises:
            DataError: as for ``image``.
        """
        return read_original(self.root / self.files[index], banner=self.banner, file=self._open(index))

    def _open(self, index: int) -> IO[bytes]:
        """Returns the bytes of an image as a file of its own; called in threads, so each call opens the larger file."""
        place = self.places[index]
        path = self.root / place.file
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                content = file.read(place.size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix="restore the file") from error
        if len(content) < place.size:
            raise DataError("ends within an image", where=str(path), expected=self.files[index], fix="copy it again")
        return io.BytesIO(content)
