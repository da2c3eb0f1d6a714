"""Pixels from our reader equal those of the Qwen-VL image processor told to make 224 x 224."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_dist.data.images import read_image

SIDE = 224


@pytest.mark.parametrize("side", [112, 224, 336, 448, 672])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_square_image_reaches_the_tower_as_through_the_processor(tmp_path: Path, side: int, mode: str) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
    )
    path = tmp_path / "image.jpg"
    noise = np.random.default_rng(side).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side)).convert(mode).save(path, quality=92)
    with Image.open(path) as image:
        theirs = processor(images=[image.convert("RGB")], return_tensors="pt")
    ours = processor(
        images=[read_image(path, SIDE)], do_resize=False, return_tensors="pt", input_data_format="channels_last"
    )
    assert theirs["image_grid_thw"].tolist() == ours["image_grid_thw"].tolist() == [[1, 14, 14]]
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"])
