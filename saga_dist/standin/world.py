"""The data set of the built-in birds: its species, their division into splits, and the images of each split.

Every species is one combination of six part colours, 4^6 = 4,096 in all. Species of a genus differ in one or two parts.
In training the flower in the background identifies the class (a shortcut that the metric loss learns); in validation
and test it is independent of the class. The splits share no species, and the stand-in was pre-trained on none of them.

The settings of ``data.birds`` define other data sets of this kind, with one exception to these rules:
``constant_parts`` requires training species that agree in some parts, which the reserved training species do not. It
therefore takes other species, which pre-training may have used. The species of validation and test stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from saga_dist.config import BirdsSection
from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.errors import DataError
from saga_dist.standin.birds import (
    IMAGE_SIZE,
    NUM_FLOWER_TYPES,
    PLAIN_SCENE,
    PLAIN_STYLE,
    Bird,
    Scene,
    Style,
    draw_bird,
    style_at,
)
from saga_dist.standin.language import NUM_VALUES, PARTS
from saga_dist.utils.rng import counter_generator

SplitName = Literal["train", "val", "test", "probe"]

_GENERA: dict[str, tuple[int, int]] = {"train": (8, 4), "val": (8, 4), "test": (10, 5)}
"""Number of genera and of species per genus, by split."""
_SPECIES_SEED = 7  # determines which species are held out; the shipped weights depend on it
NUISANCE_PRETRAIN = (0.0, 0.5)
"""Range of the nuisance strength in pre-training images."""
NUISANCE_DOWNSTREAM = (0.2, 0.7)
"""Range of the nuisance strength in the downstream splits."""


@dataclass(frozen=True, slots=True)
class BirdSplit:
    """The images of one split and their ground truth."""

    images: np.ndarray
    """uint8 [I, 80, 80, 3]."""
    labels: np.ndarray
    """int64 [I] in 0..C-1, class of each image."""
    attributes: np.ndarray
    """int64 [I, A] in 0..3, value of each part in the order of ``language.PARTS``."""
    class_names: tuple[str, ...]
    """C names: split, label, and the part values as digits."""
    part_centres: np.ndarray
    """float32 [I, A, 2]: (x, y) in pixels."""
    bird_masks: np.ndarray
    """bool [I, 80, 80], True for pixels of the bird."""
    flower_types: np.ndarray
    """int64 [I] in 0..15, type of all flowers of the image."""
    flower_centres: np.ndarray
    """float32 [I, 8, 2]: (x, y) in pixels; unused rows hold ``birds.NO_FLOWER``."""


@cache
def species() -> dict[str, np.ndarray]:
    """Returns the species of ``train``, ``val``, ``test`` and ``pretrain``: int64 [C, A] part values each, disjoint."""
    generator = counter_generator("standin species", _SPECIES_SEED)
    used: set[tuple[int, ...]] = set()
    splits: dict[str, np.ndarray] = {}
    for name, (num_genera, size) in _GENERA.items():
        found: list[tuple[int, ...]] = []
        while len(found) < num_genera * size:
            genus = _genus(generator, size, used)
            used.update(genus)
            found += genus
        splits[name] = np.array(found, dtype=np.int64)
    rest = [code for code in product(range(NUM_VALUES), repeat=len(PARTS)) if code not in used]
    return {**splits, "pretrain": np.array(rest, dtype=np.int64)}


def split(
    name: SplitName,
    config: BirdsSection,
    *,
    nuisance: tuple[float, float] = NUISANCE_DOWNSTREAM,
    style: Style | None = None,
    recolour: int | None = None,
) -> BirdSplit:
    """Returns the images of a downstream split; the same arguments always give the same images.

    Args:
        name: ``train``, ``val`` (32 classes), ``test`` (50 classes) or ``probe``: one image each of pre-training
            species, on which linear probes are fitted.
        config: seed, sizes and other settings of the data set.
        nuisance: range of the nuisance strength, within 0 to 1.
        style: appearance of all images; None: the one configured for this split.
        recolour: index of a part that gets another colour in every image while all else stays the same (see
            ``masks.py``); None: no part.

    Raises:
        DataError: the split is unknown, or has more classes than there are species.
    """
    if name == "probe":
        codes, images_per_class = _probe_species(config), 1
    elif name in ("val", "test"):
        codes = species()[name]
        images_per_class = config.val_images_per_class if name == "val" else config.test_images_per_class
    elif name == "train":
        codes, images_per_class = _train_species(config), config.train_images_per_class
    else:
        raise DataError(f"unknown split {name!r}", where="built-in birds", expected="train, val, test or probe")
    if recolour is not None:
        codes = (codes + np.eye(len(PARTS), dtype=np.int64)[recolour]) % NUM_VALUES
    correlation = config.flower_correlation if name == "train" else 0.0
    style = style or style_at(config.train_style if name == "train" else config.test_style)
    scene = Scene(config.min_flowers, config.max_flowers, config.clutter, config.bird_scale)
    return _draw_split(name, codes, images_per_class, config.seed, correlation, nuisance, style, scene)


def load_birds(root: Path, options: SplitOptions, *, birds: BirdsSection) -> Splits:
    """Returns the splits of the built-in birds, with their attributes; a layout that draws its images.

    Args:
        root: not used.
        options: not used: sizes, classes and seed are those of ``birds``.
        birds: the knobs of the world (``data.birds``).
    """

    def images(name: SplitName) -> ArrayImageSet:
        drawn = split(name, birds)
        return ArrayImageSet(drawn.images, drawn.labels, drawn.class_names, drawn.attributes)

    return Splits(images("train"), images("val"), images("test"), probe=images("probe"), attribute_names=PARTS)


def check_species(birds: BirdsSection) -> None:
    """Checks that there are as many species as the settings ask for; no image is drawn.

    Raises:
        DataError: there are fewer.
    """
    _train_species(birds)
    _probe_species(birds)


def pretraining_images(images_per_species: int, *, seed: int) -> BirdSplit:
    """Returns images of the species reserved for pre-training, in plain style, with weak nuisance and random flowers.

    Args:
        images_per_species: number of images of each species.
        seed: seed of the images.
    """
    codes = species()["pretrain"]
    return _draw_split("pretrain", codes, images_per_species, seed, 0.0, NUISANCE_PRETRAIN, PLAIN_STYLE, PLAIN_SCENE)


def _train_species(config: BirdsSection) -> np.ndarray:
    available = len(species()["train"])
    if config.train_classes > available:
        raise DataError(
            f"train_classes = {config.train_classes}",
            where="data.birds",
            expected=f"at most {available}, the species reserved for training",
        )
    if not config.constant_parts:
        return species()["train"][: config.train_classes]
    return _species_alike_in(tuple(sorted(map(PARTS.index, config.constant_parts))))[: config.train_classes]


@cache
def _species_alike_in(constant: tuple[int, ...]) -> np.ndarray:
    """Returns int64 [C, A]: as many species as training has, in genera, with equal values in the parts ``constant``.

    No species of validation or test is among them.
    """
    generator = counter_generator("standin species alike", _SPECIES_SEED, *constant)
    used = {_code(values) for name in ("val", "test") for values in species()[name]}
    num_genera, size = _GENERA["train"]
    fixed = generator.integers(0, NUM_VALUES, len(PARTS))
    found: list[tuple[int, ...]] = []
    while len(found) < num_genera * size:
        genus = _genus(generator, size, used, fixed, constant)
        used.update(genus)
        found += genus
    return np.array(found, dtype=np.int64)


def _genus(
    generator: np.random.Generator,
    size: int,
    used: set[tuple[int, ...]],
    fixed: np.ndarray | None = None,
    constant: tuple[int, ...] = (),
) -> list[tuple[int, ...]]:
    """Returns ``size`` unused species: a random base species and others that differ from it in one or two parts.

    Args:
        generator: source of the random choices.
        size: number of species.
        used: species that must not be chosen.
        fixed: int64 [A], values of the parts in ``constant``; None: none are fixed.
        constant: parts that keep their values of ``fixed`` in all species.
    """
    free = np.setdiff1d(np.arange(len(PARTS)), constant)
    while True:
        base = generator.integers(0, NUM_VALUES, len(PARTS))
        if fixed is not None:
            base[list(constant)] = fixed[list(constant)]
        genus = [_code(base)]
        for _ in range(100 * size):
            if len(genus) == size:
                break
            relative = base.copy()
            for part in generator.permutation(free)[: generator.integers(1, 3)]:
                relative[part] = (relative[part] + generator.integers(1, NUM_VALUES)) % NUM_VALUES
            if _code(relative) not in genus:
                genus.append(_code(relative))
        if len(genus) == size and used.isdisjoint(genus):
            return genus


def _code(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _probe_species(config: BirdsSection) -> np.ndarray:
    codes = species()["pretrain"]
    if config.probe_images > len(codes):
        raise DataError(
            f"probe_images = {config.probe_images}",
            where="data.birds",
            expected=f"at most {len(codes)} further species",
        )
    return codes[counter_generator("standin probe", config.seed).permutation(len(codes))[: config.probe_images]]


def _draw_split(
    name: str,
    codes: np.ndarray,
    images_per_class: int,
    seed: int,
    correlation: float,
    nuisance: tuple[float, float],
    style: Style,
    scene: Scene,
) -> BirdSplit:
    birds: list[Bird] = []
    for label, values in enumerate(codes):
        for index in range(images_per_class):
            generator = counter_generator("standin image", seed, name, label, index)
            tied_to_class = generator.random() < correlation
            # 5 and 16 have no common factor, so that 16 consecutive classes have 16 different flowers.
            kind = label * 5 % NUM_FLOWER_TYPES if tied_to_class else None
            strength = generator.uniform(*nuisance)
            birds.append(draw_bird(values, generator, nuisance=strength, style=style, flower_type=kind, scene=scene))
    num_images = len(birds)

    def stacked(field: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        values = [getattr(bird, field) for bird in birds]
        return np.stack(values).astype(dtype, copy=False) if values else np.zeros((num_images, *shape), dtype)

    return BirdSplit(
        images=stacked("image", (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        labels=np.repeat(np.arange(len(codes), dtype=np.int64), images_per_class),
        attributes=np.repeat(codes, images_per_class, axis=0),
        class_names=tuple(f"{name}_{label:04d}_{''.join(map(str, code))}" for label, code in enumerate(codes)),
        part_centres=stacked("part_centres", (len(PARTS), 2), np.float32),
        bird_masks=stacked("mask", (IMAGE_SIZE, IMAGE_SIZE), np.bool_),
        flower_types=stacked("flower_type", (), np.int64),
        flower_centres=stacked("flower_centres", (8, 2), np.float32),
    )
