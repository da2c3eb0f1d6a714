"""Which pixels show which part: the same scene is drawn with another colour of one part, and compared.

A bird's random choices do not depend on its colours, so nothing else changes. Only ``world.split`` is asked; no image
is drawn otherwise than before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.config import BirdsSection
from saga_dist.standin.birds import IMAGE_SIZE, NO_FLOWER
from saga_dist.standin.language import PARTS
from saga_dist.standin.world import SplitName, split

FLOWER_RADIUS = 6.25
"""Mean radius of a flower, pixels."""
_CHANGED = 0.25
"""A pixel belongs to a part when it changes at least so much, relative to the pixel that changes most: blur and
anti-aliasing carry a little of a part's colour beyond its edge."""


@dataclass(frozen=True, slots=True)
class SceneMasks:
    """Regions of the images of a split."""

    parts_IAHW: np.ndarray
    """bool [I, A, 80, 80], in the order of ``language.PARTS``."""
    bird_IHW: np.ndarray
    """bool [I, 80, 80]."""
    distractors_IHW: np.ndarray
    """bool [I, 80, 80]: the flowers, where they are not behind the bird."""

    def __getitem__(self, images: np.ndarray) -> SceneMasks:
        return SceneMasks(self.parts_IAHW[images], self.bird_IHW[images], self.distractors_IHW[images])


def scene_masks(name: SplitName, config: BirdsSection) -> SceneMasks:
    """Returns the regions of every image of ``split(name, config)``.

    Draws the split once more, and once for each part: about 10 ms an image.
    """
    scene = split(name, config)
    parts = [part_masks(scene.images, split(name, config, recolour=part).images) for part in range(len(PARTS))]
    flowers = np.stack([_discs(centres) for centres in scene.flower_centres])
    return SceneMasks(np.stack(parts, axis=1), scene.bird_masks, flowers & ~scene.bird_masks)


def part_masks(images: np.ndarray, recoloured: np.ndarray) -> np.ndarray:
    """Returns bool [I, H, W]: the pixels that differ by at least a quarter of the image's largest difference.

    Args:
        images: uint8 [I, H, W, 3].
        recoloured: the same scenes with another colour of one part.
    """
    change_IHW = np.abs(images.astype(np.int16) - recoloured.astype(np.int16)).max(axis=-1)
    largest_I11 = change_IHW.max(axis=(1, 2), keepdims=True)
    changed: np.ndarray = (change_IHW >= _CHANGED * largest_I11) & (largest_I11 > 0)
    return changed


def _discs(centres: np.ndarray) -> np.ndarray:
    """bool [80, 80]: pixels within ``FLOWER_RADIUS`` of a centre."""
    middle = np.arange(IMAGE_SIZE) + 0.5
    x, y = centres[centres[:, 0] != NO_FLOWER].T
    squared = (middle[None, None, :] - x[:, None, None]) ** 2 + (middle[None, :, None] - y[:, None, None]) ** 2
    near: np.ndarray = (squared <= FLOWER_RADIUS**2).any(axis=0)
    return near
