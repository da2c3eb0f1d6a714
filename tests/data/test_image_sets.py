"""Image sets in memory, and splits."""

from __future__ import annotations

import numpy as np
import pytest

from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.errors import DataError


def test_arrays_make_an_image_set() -> None:
    images = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    image_set = ArrayImageSet(images, np.array([0, 1, 1], np.int32), ("tit", "wren"), np.array([[1, 2]] * 3))
    assert len(image_set) == 3
    assert image_set.labels_I.dtype == np.int64
    assert image_set.name(2) == "wren/2"
    np.testing.assert_array_equal(image_set.image(1), images[1])
    assert image_set.attributes_IA is not None
    assert image_set.attributes_IA.shape == (3, 2)
    same = ArrayImageSet(images.copy(), [0, 1, 1], ("tit", "wren"))
    assert same.digest() == image_set.digest()
    changed = images.copy()
    changed[0, 0, 0, 0] += 1
    assert ArrayImageSet(changed, [0, 1, 1], ("tit", "wren")).digest() != same.digest()
    assert ArrayImageSet(images, [1, 1, 1], ("tit", "wren")).digest() != same.digest()
    assert Splits(same, None, same).split_hash() != Splits(same, same, same).split_hash()


def test_an_empty_array_set_is_allowed() -> None:
    assert len(ArrayImageSet(np.zeros((0, 4, 4, 3), np.uint8), [], ())) == 0


@pytest.mark.parametrize(
    ("images", "labels", "attributes", "message"),
    [
        (
            np.zeros((2, 4, 4), np.uint8),
            [0, 0],
            None,
            r"images of shape \(2, 4, 4\), uint8; expected uint8 \[I, H, W, 3\]",
        ),
        (np.zeros((2, 4, 4, 3), np.float32), [0, 0], None, "float32; expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], None, "2 images with labels of shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], None, "labels from 0 to 1; expected 0 to 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), [-1, 0], None, "labels from -1 to 0"),
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            [0, 0],
            np.zeros((3, 2)),
            r"attributes of shape \(3, 2\); expected \[2, A\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    images: np.ndarray, labels: list[int], attributes: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ArrayImageSet(images, labels, ("only",), attributes)


def test_a_gallery_is_a_split_of_its_own_with_the_labels_of_the_test() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    test, gallery, other = (ArrayImageSet(images, [0, 1], names) for names in (("a", "b"), ("a", "b"), ("b", "a")))
    splits = Splits(test, None, test, gallery=gallery)
    assert splits.names == ("train", "test", "gallery")
    assert splits.named("gallery") is gallery
    assert splits.split_hash() != Splits(test, None, test).split_hash()
    with pytest.raises(DataError, match="the classes of gallery and test differ"):
        Splits(test, None, test, gallery=other)
