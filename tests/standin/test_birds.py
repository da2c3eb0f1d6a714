"""The generator of the built-in birds: deterministic, honest about where things are, and split by species."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from saga_dist.config import BirdsSection
from saga_dist.errors import DataError
from saga_dist.standin.birds import NO_FLOWER, PART_COLORS, SHIFTED_STYLE, draw_bird
from saga_dist.standin.language import COLOR_WORDS, PARTS, answer_text
from saga_dist.standin.world import pretraining_images, species, split
from saga_dist.utils.rng import counter_generator

SMALL = BirdsSection(
    train_classes=4, train_images_per_class=4, val_images_per_class=2, test_images_per_class=2, probe_images=5
)


def test_one_key_one_image() -> None:
    values = np.array([0, 1, 2, 3, 0, 1])
    one, again, other = (draw_bird(values, counter_generator("bird", key), nuisance=0.4) for key in (1, 1, 2))
    assert np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (80, 80, 3)
    assert one.image.dtype == np.uint8


def test_parts_are_where_the_record_says_and_have_their_color() -> None:
    for index in range(20):
        generator = counter_generator("bird", index)
        values = generator.integers(0, 4, len(PARTS))
        bird = draw_bird(values, generator, nuisance=0.0)
        for part, value, (x, y) in zip(PARTS, values, bird.part_centres, strict=True):
            if part != "legs":  # the middle of two legs is between them
                assert bird.mask[int(y), int(x)]
            if part in ("breast", "wing", "tail"):  # wide enough that one pixel is that part and nothing else
                distances = [
                    np.abs(bird.image[int(y), int(x)].astype(float) - color).sum() for color in PART_COLORS[part]
                ]
                assert int(np.argmin(distances)) == value


def test_flowers_are_counted_and_never_on_the_bird() -> None:
    for index in range(20):
        bird = draw_bird(np.zeros(6, int), counter_generator("flower", index), nuisance=0.5, flower_type=3)
        centres = bird.flower_centres[bird.flower_centres[:, 0] != NO_FLOWER]
        assert len(centres) <= 7
        assert not any(bird.mask[int(y), int(x)] for x, y in centres)


def test_style_changes_the_look_but_not_the_pose() -> None:
    values = np.array([1, 1, 1, 1, 1, 1])
    plain = draw_bird(values, counter_generator("style"), nuisance=0.3)
    shifted = draw_bird(values, counter_generator("style"), nuisance=0.3, style=SHIFTED_STYLE)
    assert shifted.mask.sum() < plain.mask.sum()  # scaled down
    assert not np.array_equal(plain.image, shifted.image)


def test_no_species_is_in_two_splits() -> None:
    sets = {name: {tuple(code) for code in codes.tolist()} for name, codes in species().items()}
    assert {name: len(codes) for name, codes in sets.items()} == {"train": 32, "val": 32, "test": 50, "pretrain": 3982}
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 4**6


def test_species_of_a_genus_differ_in_one_or_two_parts_from_its_first() -> None:
    for name, size in (("train", 4), ("val", 4), ("test", 5)):
        genera = species()[name].reshape(-1, size, 6)
        distances = (genera[:, :1] != genera[:, 1:]).sum(-1)
        assert distances.min() >= 1
        assert distances.max() <= 2


def test_splits_are_reproducible_and_depend_on_the_seed() -> None:
    digests = [
        hashlib.sha256(split("train", config).images.tobytes()).hexdigest()
        for config in (SMALL, SMALL, SMALL.model_copy(update={"seed": 12}))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_more_images_leave_the_first_ones_alone() -> None:
    more = SMALL.model_copy(update={"train_images_per_class": 6})
    few, many = split("train", SMALL), split("train", more)
    assert np.array_equal(few.images[:4], many.images[:4])
    assert np.array_equal(few.images[4:8], many.images[6:10])


def test_flowers_tell_the_class_in_training_only() -> None:
    config = BirdsSection(train_classes=16, train_images_per_class=2, val_images_per_class=2)
    train, val = split("train", config), split("val", config)
    assert len(set(train.flower_types.tolist())) == 16
    assert np.array_equal(train.flower_types[::2], train.flower_types[1::2])
    assert (val.flower_types[::2] != val.flower_types[1::2]).mean() > 0.7
    free = split("train", config.model_copy(update={"flower_correlation": 0.0}))
    assert (free.flower_types[::2] != free.flower_types[1::2]).mean() > 0.6


def test_sizes_and_records_of_the_splits() -> None:
    for name, classes, images in (("train", 4, 16), ("val", 32, 64), ("test", 50, 100), ("probe", 5, 5)):
        birds = split(name, SMALL)  # type: ignore[arg-type]
        assert birds.images.shape == (images, 80, 80, 3)
        assert birds.part_centres.shape == (images, 6, 2)
        assert birds.bird_masks.shape == (images, 80, 80)
        assert len(birds.class_names) == classes == len(set(birds.labels.tolist()))
        assert len(birds.attributes) == len(birds.labels) == images
    downstream = {tuple(code) for name in ("train", "val", "test") for code in species()[name].tolist()}
    assert downstream.isdisjoint(tuple(code) for code in split("probe", SMALL).attributes.tolist())


def test_pretraining_never_sees_downstream_species() -> None:
    assert np.array_equal(pretraining_images(0, seed=0).images.shape, (0, 80, 80, 3))
    assert species()["pretrain"].shape == (3982, 6)


def test_wrong_requests_are_one_line() -> None:
    with pytest.raises(DataError, match="at most 32"):
        split("train", SMALL.model_copy(update={"train_classes": 33}))
    with pytest.raises(DataError, match="unknown split"):
        split("all", SMALL)  # type: ignore[arg-type]


def test_answers_follow_from_the_values() -> None:
    text = answer_text([0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 2])
    assert '"differences": "bill same; crown differs; breast same; wing same; tail same; legs differs"' in text
    assert '"confidence": "medium", "reasoning": "Several parts differ.", "same_species": "no"' in text
    assert answer_text([1] * 6, [1] * 6).endswith('"reasoning": "Every part matches.", "same_species": "yes"}')
    assert len({word for part in PARTS for word in COLOR_WORDS[part]}) == 24
