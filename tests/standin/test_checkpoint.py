"""Model folders of the stand-in: complete for Hugging Face, sized as asked, and guarded by a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_dist.data.prompts import render_prompt
from saga_dist.errors import CheckpointError, ModelError
from saga_dist.standin.checkpoint import verify_manifest, write_manifest, write_random_checkpoint
from saga_dist.standin.language import STANDIN_PROMPT
from saga_dist.standin.tokenizer import IMAGE_PLACEHOLDER, SPECIAL_TOKENS


def test_folder_loads_with_every_auto_class(tiny_checkpoint: Path) -> None:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoProcessor,
        AutoTokenizer,
        GenerationConfig,
        Qwen3VLForConditionalGeneration,
    )

    config = AutoConfig.from_pretrained(tiny_checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert config.vision_config.deepstack_visual_indexes == [0]
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(8))
    assert tokenizer.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(tiny_checkpoint).eos_token_id == [2, 0]
    image = Image.fromarray(np.zeros((200, 200, 3), np.uint8))
    pixels = AutoImageProcessor.from_pretrained(tiny_checkpoint)(images=[image], return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 10, 10]]  # every square image becomes 80 pixels
    prompt = render_prompt(STANDIN_PROMPT, image_a=IMAGE_PLACEHOLDER, image_b=IMAGE_PLACEHOLDER)
    inputs = AutoProcessor.from_pretrained(tiny_checkpoint)(text=[prompt], images=[image, image], return_tensors="pt")
    assert (inputs["input_ids"] == config.image_token_id).sum() == 50
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_chat_template_makes_the_turn_that_the_prompt_makes(tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    prompt = render_prompt(STANDIN_PROMPT, image_a="(A)", image_b="(B)")
    content = prompt.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert turn == prompt


def test_sizes_can_be_asked_for_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig

    sizes = {"tower_depth": 3, "deepstack": (0, 2), "layers": 4, "width": 64, "head_dim": 16}
    folders = [
        write_random_checkpoint(tmp_path / str(index), seed=seed, **sizes)  # type: ignore[arg-type]
        for index, seed in enumerate((1, 1, 2))
    ]
    config = AutoConfig.from_pretrained(folders[0])
    assert (config.vision_config.depth, config.vision_config.out_hidden_size) == (3, 64)
    assert config.vision_config.deepstack_visual_indexes == [0, 2]
    assert config.text_config.rope_parameters["mrope_section"] == [4, 2, 2]
    first, again, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.visual.pos_embed.weight"], other["model.visual.pos_embed.weight"])


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown size 'depht'"):
        write_random_checkpoint(tmp_path, depht=2)
    with pytest.raises(ModelError, match="image_size = 81"):
        write_random_checkpoint(tmp_path, image_size=81)
    with pytest.raises(ModelError, match="deepstack"):
        write_random_checkpoint(tmp_path, deepstack=(1,))


def test_manifest_notices_a_flipped_byte_and_a_missing_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    write_manifest(folder, seed=0)
    assert verify_manifest(folder)["seed"] == 0

    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify_manifest(folder)

    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify_manifest(folder)
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify_manifest(tmp_path)
