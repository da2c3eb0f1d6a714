"""Reading image files into the tower's pixels, compared with Pillow's open and resize and the family's image processor.

There are two rows: as the paper reads images (bit-equal pixels), and with ``data.fast_jpeg``, which lets the JPEG
decoder scale down and so changes pixels slightly.

The lower bound of the first row is Pillow's decoder and filter, which define the pixels: about nine tenths of the
alternative's time, so a factor of 3 is impossible. The lower bound of the second row is the decoder at reduced scale, a
quarter of the alternative's time (four fifths of it entropy decoding, at any scale); writing the patches costs a
twentieth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from saga_dist.bench.common import BenchRow, Report, Size, in_turns, more_is_better, one_thread, random_model
from saga_dist.data.images import read_image
from saga_dist.models.families import resolve_family
from saga_dist.utils.output_files import make_folder

if TYPE_CHECKING:
    from saga_dist.models.families.base import VisionTower

SIDE = 224
"""Side of the resized images in pixels."""
BATCH = 32
"""Images per call of the preprocessing."""
SPEED_BAR = 3.0
"""Target for the ratio of the rates."""
TOKEN_COSINE = 0.99
"""Smallest cosine similarity of the tokens of both sides that counts as equal with ``data.fast_jpeg``."""


def run(size: Size) -> Report:
    """Returns images per processor second, with and without ``data.fast_jpeg``."""
    count, sides = {Size.TINY: (3, (120, 300)), Size.QUICK: (96, (500, 2000)), Size.FULL: (2000, (500, 2000))}[size]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = _write_photos(folder / "photos", count, sides)
        tower, processor = _parts(folder / "model")
        other = _PillowSide(processor, paths)
        for case, fast in (("the same pixels", False), ("fast_jpeg", True)):
            rows.append(_row(case, fast, tower, other, paths, repeats=3 if size is Size.QUICK else 1))
    return Report(
        bench="images",
        alternative="Pillow and the family's processor",
        rows=tuple(rows),
        notes=(
            f"{count} JPEG files with sides of {sides[0]} to {sides[1]} pixels, to {SIDE} x {SIDE}; images per "
            "processor second",
            f"equal: the same pixels; with fast_jpeg a cosine of at least {TOKEN_COSINE} between tokens of both",
        ),
    )


class _PillowSide:
    """The alternative: Pillow and the family's image processor.

    Args:
        processor: image processor of transformers.
        paths: image files.
    """

    def __init__(self, processor: Any, paths: Sequence[Path]) -> None:
        self._processor, self._paths = processor, paths

    def pixels(self) -> torch.Tensor:
        """Returns float32 patches of all images."""
        parts = []
        for batch in _batches(self._paths):
            images = [Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for path in batch]
            parts.append(self._processor(images=images, return_tensors="pt")["pixel_values"])
        return torch.cat(parts)


def _row(
    case: str, fast: bool, tower: VisionTower, other: _PillowSide, paths: Sequence[Path], *, repeats: int
) -> BenchRow:
    def read() -> torch.Tensor:
        arrays = ([read_image(path, SIDE, fast_jpeg=fast) for path in batch] for batch in _batches(paths))
        return torch.cat([tower.preprocess(batch).pixel_values for batch in arrays])

    with one_thread():
        ours, theirs = in_turns(read, other.pixels, repeats)
    found, expected = ours.results[-1], theirs.results[-1]
    cosine = _token_cosine(tower, found, expected)
    levels = 127.5 * (found - expected).abs().mean().item()
    return more_is_better(
        case,
        len(paths) / ours.cpu,
        len(paths) / theirs.cpu,
        "img/s",
        equal=cosine >= TOKEN_COSINE if fast else torch.equal(found, expected),
        bar=SPEED_BAR,
        detail={"token_cosine": cosine, "mean_pixel_difference_of_255": levels},
    )


@torch.no_grad()
def _token_cosine(tower: VisionTower, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the smallest mean cosine similarity of an image's tokens, over the first images (at most 16).

    Args:
        tower: vision tower.
        found: float32 patches of saga_dist.
        expected: float32 patches of the alternative.
    """
    from saga_dist.models.families.base import PixelBatch

    per_image = (SIDE // tower.layout.patch_size) ** 2
    count = min(16, len(found) // per_image)
    grid = (1, SIDE // tower.layout.patch_size, SIDE // tower.layout.patch_size)
    length = tower.layout.num_tokens(grid)

    def tokens(pixels: torch.Tensor) -> torch.Tensor:
        batch = PixelBatch(pixels[: count * per_image], (grid,) * count, (length,) * count)
        return tower.layout.main(tower(batch))

    cosine_N = torch.nn.functional.cosine_similarity(tokens(found), tokens(expected), dim=-1)
    return cosine_N.unflatten(0, (count, length)).mean(1).min().item()


def _parts(folder: Path) -> tuple[VisionTower, Any]:
    """Returns the tower and transformers' image processor of a random model with 224-pixel images and 16-pixel patches.

    Args:
        folder: folder to write the model to.
    """
    from transformers import AutoImageProcessor

    random_model(folder, image_size=SIDE, patch_size=16)
    return resolve_family(folder).load_tower().eval(), AutoImageProcessor.from_pretrained(folder, backend="pil")


def _write_photos(folder: Path, count: int, sides: tuple[int, int]) -> list[Path]:
    """Writes JPEG files of soft shapes with some grain, which compress about as photographs do; returns their paths.

    Args:
        folder: new folder to write to.
        count: number of files.
        sides: smallest and largest side in pixels.
    """
    make_folder(folder)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        width, height = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grainy = np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index:05d}.jpg")
        Image.fromarray(grainy).save(paths[-1], quality=90)
    return paths


def _batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]
