"""The masks of parts: they hold the pixels of the part's own colour, lie on the bird, and change no image."""

from __future__ import annotations

import numpy as np
import pytest

from saga_dist.config import BirdsSection
from saga_dist.standin.birds import PART_COLORS, PLAIN_STYLE
from saga_dist.standin.language import PARTS
from saga_dist.standin.masks import part_masks, scene_masks
from saga_dist.standin.world import split

CONFIG = BirdsSection(test_images_per_class=2)


@pytest.mark.integration
def test_a_part_has_its_own_colour() -> None:
    """Without nuisance a part's median pixel is nearer to its own colour than to the part's three others."""
    calm = split("test", CONFIG, nuisance=(0.0, 0.0), style=PLAIN_STYLE)
    for index, part in enumerate(PARTS):
        other = split("test", CONFIG, nuisance=(0.0, 0.0), style=PLAIN_STYLE, recolour=index)
        masks = part_masks(calm.images, other.images)
        colours = np.array(PART_COLORS[part], float)
        for image, mask, values in zip(calm.images, masks, calm.attributes, strict=True):
            distances = np.linalg.norm(np.median(image[mask], axis=0) - colours, axis=1)
            assert distances.argmin() == values[index], part
            assert distances.min() < 60, part  # small parts have a rim that is mixed with what is behind


@pytest.mark.integration
def test_parts_lie_on_the_bird_where_the_generator_says_and_apart_from_each_other() -> None:
    birds, masks = split("test", CONFIG), scene_masks("test", CONFIG)
    assert masks.parts_IAHW.shape == (100, 6, 80, 80)
    sizes_A = masks.parts_IAHW.sum((0, 2, 3))
    assert (masks.parts_IAHW & ~birds.bird_masks[:, None]).sum() < 0.01 * sizes_A.sum()
    assert (masks.parts_IAHW.sum(1) > 1).sum() < 0.02 * sizes_A.sum()
    rows, columns = np.mgrid[:80, :80] + 0.5
    for image in range(0, 100, 7):
        for part, name in enumerate(PARTS):
            mask = masks.parts_IAHW[image, part]
            middle = np.array([columns[mask].mean(), rows[mask].mean()])
            # The crown's and the breast's named centres are not those of what is visible of them.
            assert np.abs(middle - birds.part_centres[image, part]).max() < 6, name
    assert not (masks.distractors_IHW & masks.bird_IHW).any()


@pytest.mark.integration
def test_flowers_are_where_the_flowers_are() -> None:
    """Against a loop over pixels and flowers."""
    birds, masks = split("test", CONFIG), scene_masks("test", CONFIG)
    for image in range(0, 100, 9):
        centres = [tuple(centre) for centre in birds.flower_centres[image] if centre[0] > 0]
        for y in range(80):
            for x in range(0, 80, 5):
                near = any((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= 6.25**2 for cx, cy in centres)
                assert masks.distractors_IHW[image, y, x] == (near and not birds.bird_masks[image, y, x])


@pytest.mark.integration
def test_a_world_without_flowers_has_no_distractors() -> None:
    masks = scene_masks("test", CONFIG.model_copy(update={"min_flowers": 0, "max_flowers": 0}))
    assert not masks.distractors_IHW.any()


@pytest.mark.parametrize("part", range(len(PARTS)))
def test_recolouring_changes_one_value_and_nothing_known_besides(part: int) -> None:
    plain, other = (
        split("val", BirdsSection(val_images_per_class=2)),
        split("val", BirdsSection(val_images_per_class=2), recolour=part),
    )
    differs = (plain.attributes != other.attributes).any(axis=0)
    assert differs.tolist() == [index == part for index in range(len(PARTS))]
    np.testing.assert_array_equal(plain.part_centres, other.part_centres)
    np.testing.assert_array_equal(plain.bird_masks, other.bird_masks)
    np.testing.assert_array_equal(plain.flower_centres, other.flower_centres)
