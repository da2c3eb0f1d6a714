"""The same picture in two places is found, another picture is not, and many alike do not take for ever."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from saga_dist.data import duplicates
from saga_dist.data.duplicates import ReadImage, fingerprint, identical, near


def picture(seed: int, side: int = 96) -> np.ndarray:
    """A smooth random image, uint8 [side, side, 3], as a photograph is smooth."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def read(image: np.ndarray, split: str, name: str, class_name: str = "c") -> ReadImage:
    return ReadImage(split, class_name, name, fingerprint(image))


def names(twins: object) -> list[tuple[str, str]]:
    return [(one.name, other.name) for one, other in twins]  # type: ignore[attr-defined]


def test_identical_pixels_in_two_places_are_one_pair_for_each_place() -> None:
    images = [
        read(picture(0), "train", "a", "x"),
        read(picture(0), "train", "same class", "x"),
        read(picture(0), "train", "other class", "y"),
        read(picture(0), "test", "test", "z"),
        read(picture(1), "test", "another", "z"),
    ]
    assert names(identical(images)) == [("a", "other class"), ("a", "test")]
    assert list(near(images)) == []


def test_a_changed_pixel_is_not_identical_but_near() -> None:
    changed = picture(0).copy()
    changed[0, 0, 0] ^= 1
    images = [read(picture(0), "train", "a"), read(changed, "test", "b")]
    assert list(identical(images)) == []
    assert names(near(images)) == [("a", "b")]


@pytest.mark.parametrize("quality", [90, 60])
def test_recompressed_images_are_found_in_another_split_only(quality: int) -> None:
    copies = [read(recompressed(picture(seed), quality), "test", f"t{seed}") for seed in range(20)]
    images = [*(read(picture(seed), "train", str(seed)) for seed in range(20)), *copies]
    found = names(near(images))
    assert set(found) <= {(str(seed), f"t{seed}") for seed in range(20)}
    assert len(found) >= 16
    assert list(near([image._replace(split="train") for image in images])) == []


def test_different_pictures_are_not_near() -> None:
    images = [read(picture(seed), ("train", "test")[seed % 2], str(seed)) for seed in range(400)]
    assert list(near(images)) == []


def test_the_colour_tells_pictures_of_one_shape_apart() -> None:
    one = read(picture(0), "train", "a")
    for shift, found in ((3, [("a", "b")]), (5, [])):
        values = one.fingerprint.thumbnail
        thumbnail = np.where(values < 128, values + np.uint8(shift), values - np.uint8(shift))
        other = one.fingerprint._replace(thumbnail=thumbnail, digest=b"other")
        assert names(near([one, one._replace(split="test", name="b", fingerprint=other)])) == found


def test_images_without_structure_are_not_near() -> None:
    flat = [read(np.full((9, 9, 3), level, np.uint8), split, split) for level, split in ((99, "train"), (100, "test"))]
    assert list(near(flat)) == []


def test_every_pair_within_the_distance_shares_a_part_of_the_hash() -> None:
    # Three different bits cannot touch all four parts; so no pair within the distance is lost.
    assert duplicates.HASH_DISTANCE == 3
    base = read(picture(0), "train", "a")
    for parts in itertools.combinations(range(4), 3):
        bits = base.fingerprint.hash_4.copy()
        for part in parts:
            bits[part] ^= np.uint32(1 << 7)
        other = ReadImage("test", "c", "b", base.fingerprint._replace(hash_4=bits, digest=b"other"))
        assert names(near([base, other])) == [("a", "b")]
    bits = base.fingerprint.hash_4.copy()
    bits[0] ^= np.uint32(0b1111)
    far = ReadImage("test", "c", "b", base.fingerprint._replace(hash_4=bits, digest=b"other"))
    assert list(near([base, far])) == []


def test_many_alike_are_compared_with_a_bounded_number_of_others() -> None:
    one = read(picture(0), "train", "a")
    images = [
        one._replace(
            split=("train", "test")[n % 2], fingerprint=one.fingerprint._replace(digest=bytes([n % 256, n // 256]))
        )
        for n in range(2000)
    ]
    found = list(near(images))
    assert 2000 <= len(found) <= 2000 * 4 * duplicates._NEIGHBOURS


def test_nothing_has_no_twins() -> None:
    assert list(near([])) == list(identical([])) == []
