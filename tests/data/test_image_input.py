"""Images are read batch by batch, and a single one gives one vector, whatever function embeds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.data.image_input import encode_images
from saga_dist.errors import DataError


def mean_colours(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([image.mean((0, 1)) for image in images]).astype(np.float32)


def encode(images: Any, *, batch_size: int = 2) -> np.ndarray:
    return encode_images(images, mean_colours, size=4, width=3, batch_size=batch_size)


def plain(red: int) -> np.ndarray:
    return np.full((6, 8, 3), (red, 0, 255), np.uint8)


def test_one_image_gives_one_vector_and_a_list_one_row_each() -> None:
    np.testing.assert_array_equal(encode(plain(7)), [7, 0, 255])
    np.testing.assert_array_equal(encode([plain(7)]), [[7, 0, 255]])
    np.testing.assert_array_equal(encode([plain(red) for red in range(5)])[:, 0], range(5))
    assert encode([]).shape == (0, 3)
    assert encode([]).dtype == np.float32


def test_an_iterator_is_read_batch_by_batch() -> None:
    events: list[str] = []

    def images() -> Iterator[np.ndarray]:
        for red in range(5):
            events.append(f"read {red}")
            yield plain(red)

    def embed(images: list[np.ndarray]) -> np.ndarray:
        events.append(f"embed {len(images)}")
        return mean_colours(images)

    found = encode_images(images(), embed, size=4, width=3, batch_size=2)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert events == ["read 0", "read 1", "embed 2", "read 2", "read 3", "embed 2", "read 4", "embed 1"]


def test_floating_values_are_rounded_not_cut_off() -> None:
    assert encode(np.full((6, 8), 254.6 / 255))[0] == 255
    assert encode(np.full((6, 8), 254.4 / 255))[0] == 254


def test_a_text_is_a_path_and_not_its_letters() -> None:
    with pytest.raises(DataError, match=r"^a\.jpg: cannot read"):
        encode("a.jpg")


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="batch_size = 0; expected 1 or more"):
        encode([plain(1)], batch_size=0)


def test_a_closed_file_is_named(tmp_path: Any) -> None:
    Image.fromarray(plain(3)).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(DataError, match="^image 1: damaged image"):
        encode([plain(1), image])
