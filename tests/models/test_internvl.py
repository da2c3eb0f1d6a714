"""What only InternVL has: single tiles, pixel shuffle, markers that vLLM puts there itself, two namings of tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saga_dist.errors import DataError, ModelError
from saga_dist.models.families import resolve_family
from saga_dist.standin.random_families import write_random_family
from saga_dist.types import EncoderTokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_family(tmp_path_factory.mktemp("internvl"), "internvl", seed=5)


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def edited(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("size", [80, 64, 48])
def test_a_square_image_is_one_tile_for_the_familys_processor_too(checkpoint: Path, tmp_path: Path, size: int) -> None:
    """With tiling switched on, as the family's processor has it by default; it then brings the tile to its own size."""
    from transformers import AutoImageProcessor

    (image,) = pictures((size, size))
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    arguments = {"return_tensors": "pt", "input_data_format": "channels_last"}
    tiled = processor(images=[image], crop_to_patches=True, size={"height": size, "width": size}, **arguments)
    assert tiled["num_patches"].tolist() == [1]
    pixels = resolve_family(checkpoint).load_tower().preprocess([image])
    assert torch.equal(pixels.pixel_values, tiled["pixel_values"])
    assert (pixels.grids, pixels.lengths) == (((1, size // 8, size // 8),), ((size // 16) ** 2,))


def test_a_token_is_a_square_of_two_by_two_patches(checkpoint: Path) -> None:
    """By a loop: which of InternViT's patches reach which token."""
    tower = resolve_family(checkpoint).load_tower().eval()
    pixels = tower.preprocess(pictures((80, 80)))
    with torch.no_grad():
        patches_RCD = tower.model.vision_tower(pixels.pixel_values).last_hidden_state[0, 1:].reshape(10, 10, -1)
        squares_ND = [
            torch.cat([patches_RCD[2 * row + down, 2 * column + right] for down in (0, 1) for right in (0, 1)])
            for row in range(5)
            for column in range(5)
        ]
        expected_ND = tower.model.multi_modal_projector(torch.stack(squares_ND))
        torch.testing.assert_close(tower(pixels), expected_ND, rtol=1e-4, atol=1e-5)


def test_images_of_one_batch_are_squares_of_one_size(checkpoint: Path) -> None:
    tower = resolve_family(checkpoint).load_tower()
    for sizes in (((80, 80), (64, 64)), ((80, 64),)):
        with pytest.raises(DataError, match="sides of 64, 80 pixels; expected squares of one size"):
            tower.preprocess(pictures(*sizes))


def test_vllm_gets_one_tensor_per_image_and_no_markers(checkpoint: Path) -> None:
    family = resolve_family(checkpoint)
    tokenizer = family.load_tokenizer()
    ids = tokenizer.encode(f"a {family.image_placeholder} b", add_special_tokens=False)
    start, image, end = tokenizer.convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    assert ids[ids.index(image) - 1] == start
    assert ids[ids.index(image) + 1] == end
    assert family.engine_prompt_ids(ids) == [token for token in ids if token not in (start, end)]
    assert {start, image, end} <= set(family.forbidden_token_ids)
    values_NW = torch.randn(34, 128)
    record = EncoderTokens("p", values_NW, (25, 9), ((1, 10, 10), (1, 6, 6)), 0, 0)
    first, second = family.image_inputs(record)["image"]
    assert torch.equal(first, values_NW[:25])
    assert torch.equal(second, values_NW[25:])


def test_files_named_as_by_later_versions_load_as_well(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    assert {"language_model.model.norm.weight", "language_model.lm_head.weight"} <= set(tensors), "the earlier names"
    later = {
        f"model.{name}".replace("language_model.model.", "language_model.").replace(
            "model.language_model.lm_", "lm_"
        ): v
        for name, v in tensors.items()
    }
    assert {"model.language_model.norm.weight", "lm_head.weight", "model.multi_modal_projector.linear_1.bias"} <= set(
        later
    )
    save_file(later, folder / "model.safetensors", metadata={"format": "pt"})
    one, other = resolve_family(checkpoint), resolve_family(folder)
    assert one.load_backbone().digest() == other.load_backbone().digest()
    again = other.load_tower().state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.load_tower().state_dict().items())


def test_other_language_models_and_odd_ratios_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    for number, kind in enumerate(("qwen2", "qwen3_moe", "gpt_oss")):
        folder = edited(checkpoint, tmp_path / str(number), text_config={**text, "model_type": kind})
        with pytest.raises(ModelError, match=f"InternVL with language model '{kind}' is not supported; expected text_"):
            resolve_family(folder)
    with pytest.raises(ModelError, match="downsample_ratio = 0.4; expected 1 / a whole number"):
        resolve_family(edited(checkpoint, tmp_path / "odd", downsample_ratio=0.4))
