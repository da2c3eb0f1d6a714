"""Pixel masks of the parts, found by drawing the same scene with another colour of one part and comparing.

The random choices of a scene do not depend on the colours of the parts, so nothing else changes. The images come from
``world.split``, so they are the ones that training and evaluation use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.config import BirdsSection
from saga_dist.standin.birds import IMAGE_SIZE, NO_FLOWER
from saga_dist.standin.language import PARTS
from saga_dist.standin.world import SplitName, split

FLOWER_RADIUS = 6.25
"""Mean radius of a flower in pixels."""
_CHANGED = 0.25
"""Smallest change of a pixel of the part, relative to the largest change in the image: blur and anti-aliasing spread a
little of a part's colour beyond its edge."""


@dataclass(frozen=True, slots=True)
class SceneMasks:
    """Pixel masks of the images of a split; an index array selects images."""

    parts_IAHW: np.ndarray
    """bool [I, A, 80, 80], True for pixels of a part, in the order of ``language.PARTS``."""
    bird_IHW: np.ndarray
    """bool [I, 80, 80], True for pixels of the bird."""
    distractors_IHW: np.ndarray
    """bool [I, 80, 80], True for pixels of flowers that are not pixels of the bird."""

    def __getitem__(self, images: np.ndarray) -> SceneMasks:
        return SceneMasks(self.parts_IAHW[images], self.bird_IHW[images], self.distractors_IHW[images])


def scene_masks(name: SplitName, config: BirdsSection) -> SceneMasks:
    """Returns the masks of every image of ``split(name, config)``.

    Draws the split once and then once for each part, which takes about 10 ms per image.
    """
    scene = split(name, config)
    parts = [part_masks(scene.images, split(name, config, recolour=part).images) for part in range(len(PARTS))]
    flowers = np.stack([_discs(centres) for centres in scene.flower_centres])
    return SceneMasks(np.stack(parts, axis=1), scene.bird_masks, flowers & ~scene.bird_masks)


def part_masks(images: np.ndarray, recoloured: np.ndarray) -> np.ndarray:
    """Returns bool [I, H, W], True for pixels that differ by at least a quarter of the image's largest difference.

    Args:
        images: uint8 [I, H, W, 3].
        recoloured: uint8 [I, H, W, 3], the same scenes with another colour of one part.
    """
    change_IHW = np.abs(images.astype(np.int16) - recoloured.astype(np.int16)).max(axis=-1)
    largest_I11 = change_IHW.max(axis=(1, 2), keepdims=True)
    changed: np.ndarray = (change_IHW >= _CHANGED * largest_I11) & (largest_I11 > 0)
    return changed


def _discs(centres: np.ndarray) -> np.ndarray:
    """Returns bool [80, 80], True for pixels within ``FLOWER_RADIUS`` of a flower.

    Args:
        centres: float32 [8, 2]: (x, y) in pixels; rows with ``NO_FLOWER`` are ignored.
    """
    middle = np.arange(IMAGE_SIZE) + 0.5
    x, y = centres[centres[:, 0] != NO_FLOWER].T
    squared = (middle[None, None, :] - x[:, None, None]) ** 2 + (middle[None, :, None] - y[:, None, None]) ** 2
    near: np.ndarray = (squared <= FLOWER_RADIUS**2).any(axis=0)
    return near
