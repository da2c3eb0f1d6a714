"""The knobs of the built-in world, measured on the images they make; and the default world, to the byte."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from saga_dist.config import BirdsSection, parse_config
from saga_dist.errors import ConfigError
from saga_dist.standin.birds import NO_FLOWER, PLAIN_STYLE, SHIFTED_STYLE, Scene, draw_bird, style_at
from saga_dist.standin.language import PARTS
from saga_dist.standin.world import BirdSplit, SplitName, species, split
from saga_dist.utils.rng import counter_generator

SMALL = BirdsSection(train_images_per_class=4, val_images_per_class=2, test_images_per_class=2, probe_images=8)

# sha256 of images, flower centres and part centres as they were before the world had knobs.
DEFAULT_WORLD: dict[SplitName, str] = {
    "train": "e584be2b14a42eb7b9c72f3c856cf57c80249b5bcf38b5514e616ae0362bcfbb",
    "val": "9ebf5e3087e3ef73b3ddeedfa94423246af5f10637aab1245fe9b9e354d960e0",
    "test": "6803ea49e27aef0b5bd28a847143c12565171ebe3f480796381a79c7bb24c253",
    "probe": "705115a852f9ec48f5186fcd2abe15abda0fb74193da51e6cc6e86a01021aa2d",
}
SPECIES = "bf297835afb060c1ddbc9b527faed75146a0abec675a32538050eb61c6fe0d09"


def changed(**knobs: object) -> BirdsSection:
    return SMALL.model_copy(update=knobs)


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def bird_area(birds: BirdSplit) -> float:
    return float(birds.bird_masks.mean())


def test_the_default_world_is_what_the_shipped_weights_were_made_in() -> None:
    config = changed(train_images_per_class=2)
    for name, expected in DEFAULT_WORLD.items():
        birds = split(name, config)
        assert sha256(birds.images.tobytes(), birds.flower_centres.tobytes(), birds.part_centres.tobytes()) == expected
    assert sha256(*(name.encode() + codes.tobytes() for name, codes in species().items())) == SPECIES


@pytest.mark.integration
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
def test_the_flower_tells_the_class_as_often_as_it_says(correlation: float) -> None:
    train = split("train", changed(train_images_per_class=24, flower_correlation=correlation))
    told = (train.flower_types == train.labels * 5 % 16).mean()
    # A random flower is the right one in 1 of 16 cases; 384 images.
    expected = correlation + (1 - correlation) / 16
    assert abs(told - expected) <= 4 * np.sqrt(expected * (1 - expected) / 384)


def test_a_world_without_flowers_has_none_and_a_field_of_them_has_many() -> None:
    bare = split("train", changed(min_flowers=0, max_flowers=0))
    assert (bare.flower_centres == NO_FLOWER).all()
    field = split("val", changed(min_flowers=8, max_flowers=8))
    counts = (field.flower_centres[:, :, 0] != NO_FLOWER).sum(1)
    assert counts.max() == 8 and counts.mean() > 6


def test_a_smaller_bird_has_the_area_of_its_scale_squared_and_stands_anywhere() -> None:
    whole, half = split("val", SMALL), split("val", changed(bird_scale=0.5))
    assert bird_area(half) / bird_area(whole) == pytest.approx(0.25, rel=0.15)  # masks count touched pixels
    spread = half.part_centres.mean(1).std(0) / whole.part_centres.mean(1).std(0)
    assert (spread > 1.5).all()
    # Wholly visible: every part's centre is inside.
    assert half.part_centres.min() > 0 and half.part_centres.max() < 80


def test_clutter_adds_colour_behind_the_bird_and_not_on_it() -> None:
    values = np.array([0, 1, 2, 3, 0, 1])
    for index in range(10):
        crowded = draw_bird(values, counter_generator("clutter", index), nuisance=0.0, scene=Scene(0, 0, clutter=30))
        bare = draw_bird(values, counter_generator("clutter", index), nuisance=0.0, scene=Scene(0, 0))
        # Away from the bird a bare background is a gradient of rows; clutter is not.
        rows = [np.where(bird.mask[..., None], np.nan, bird.image.astype(float)) for bird in (crowded, bare)]
        crowded_spread, bare_spread = (np.nanmean(np.nanstd(image, axis=1)) for image in rows)
        assert crowded_spread > 3 * bare_spread
    birds = split("val", changed(clutter=30))
    x, y = birds.part_centres[:, PARTS.index("wing")].astype(int).T
    assert birds.bird_masks[np.arange(len(x)), y, x].all()


@pytest.mark.parametrize("constant", [("crown",), ("bill", "wing"), ("tail", "bill", "crown")])
def test_constant_parts_are_constant_in_training_and_vary_in_test(constant: tuple[str, ...]) -> None:
    config = changed(constant_parts=constant, train_classes=32)
    train, test = split("train", config), split("test", config)
    columns = [PARTS.index(part) for part in constant]
    rest = [column for column in range(len(PARTS)) if column not in columns]
    assert all(len(np.unique(train.attributes[:, column])) == 1 for column in columns)
    assert all(len(np.unique(train.attributes[:, column])) > 1 for column in rest)
    assert all(len(np.unique(test.attributes[:, column])) == 4 for column in columns)
    assert len({tuple(code) for code in train.attributes.tolist()}) == 32  # the other parts tell classes apart
    unseen = {tuple(code) for name in ("val", "test") for code in species()[name].tolist()}
    assert unseen.isdisjoint(tuple(code) for code in train.attributes.tolist())
    genera = train.attributes[::4].reshape(8, 4, 6)
    assert ((genera[:, :1] != genera[:, 1:]).sum(-1) <= 2).all()


@pytest.mark.integration
def test_styles_lie_on_a_line_and_training_has_its_own() -> None:
    assert style_at(0.0) == PLAIN_STYLE
    assert style_at(1.0) == SHIFTED_STYLE
    assert style_at(2.0).saturation == pytest.approx(0.5)
    assert style_at(2.0).rotation_deg == pytest.approx(16.0)
    config = changed(train_style=0.0, test_style=2.0)
    assert np.array_equal(split("train", config).images, split("train", SMALL, style=PLAIN_STYLE).images)
    for name in ("val", "test", "probe"):
        assert np.array_equal(split(name, config).images, split(name, SMALL, style=style_at(2.0)).images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"min_flowers": 5, "max_flowers": 4}, "min_flowers = 5 with max_flowers = 4"),
        ({"max_flowers": 9}, "data.birds.max_flowers = 9"),
        ({"constant_parts": ["beak"]}, "'bill', 'crown'"),
        ({"constant_parts": ["bill", "bill"]}, "expected each part once"),
        ({"constant_parts": ["bill", "crown", "wing", "tail"]}, "at most 3 items"),
        ({"bird_scale": 0.1}, "data.birds.bird_scale = 0.1"),
    ],
)
def test_wrong_knobs_are_one_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": {"layout": "birds", "image_size": 80, "birds": knobs}}, where="world.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
