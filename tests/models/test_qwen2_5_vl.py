"""What only Qwen2.5-VL has: windows of unequal size, the released files' names, a system turn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saga_dist.errors import ModelError
from saga_dist.models.families import resolve_family
from saga_dist.standin.random_families import write_random_family
from saga_dist.types import EncoderTokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_family(tmp_path_factory.mktemp("qwen2_5_vl"), "qwen2_5_vl", seed=5)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.mark.parametrize("sizes", [((80, 80), (48, 112), (16, 80)), ((96, 64), (64, 96)), ((32, 32), (64, 64))])
def test_windows_of_any_size_are_those_of_transformers(
    checkpoint: Path, reference: Any, sizes: tuple[tuple[int, int], ...]
) -> None:
    rng = np.random.default_rng(0)
    tower = resolve_family(checkpoint).load_tower()
    pixels = tower.preprocess([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])
    assert pixels.lengths == tuple(rows * columns // 256 for rows, columns in sizes)
    values_NW = tower(pixels)
    expected = reference.model.visual(pixels.pixel_values, grid_thw=torch.tensor(pixels.grids), return_dict=True)
    torch.testing.assert_close(values_NW, expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_windows_matter(checkpoint: Path) -> None:
    """With full attention in every layer the tokens would be others: the comparison above is about something."""
    rng = np.random.default_rng(0)
    tower = resolve_family(checkpoint).load_tower()
    pixels = tower.preprocess([rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)])
    windowed_NW = tower(pixels)
    tower.model.fullatt_block_indexes = [0, 1, 2]
    assert ((tower(pixels) - windowed_NW).norm() / windowed_NW.norm()) > 1e-2


def test_positions_of_oblong_images_are_those_of_transformers(checkpoint: Path, reference: Any) -> None:
    family = resolve_family(checkpoint)
    text = f"red {family.image_placeholder} or {family.image_placeholder} blue?"
    ids = family.load_tokenizer().encode(text, add_special_tokens=False)
    prompt = family.load_backbone().build_layout(ids, ((1, 4, 10), (1, 8, 6)))
    mask_S = prompt.token_ids_S == reference.config.image_token_id
    expected_3S, delta = reference.model.get_rope_index(
        prompt.token_ids_S[None],
        mm_token_type_ids=mask_S[None].int(),
        image_grid_thw=torch.tensor([[1, 4, 10], [1, 8, 6]]),
    )
    assert torch.equal(prompt.position_ids_RS, expected_3S[:, 0])
    assert prompt.next_position == len(prompt.token_ids_S) + int(delta)
    assert [image.stop - image.start for image in prompt.images] == [10, 12]


def test_files_named_as_by_later_versions_load_as_well(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    assert {"visual.merger.ln_q.weight", "model.norm.weight"} <= set(tensors), "the released names"
    later = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): value
        for name, value in tensors.items()
    }
    save_file(later, folder / "model.safetensors", metadata={"format": "pt"})
    one, other = resolve_family(checkpoint), resolve_family(folder)
    assert one.load_backbone().digest() == other.load_backbone().digest()
    for name, tensor in one.load_tower().state_dict().items():
        assert torch.equal(tensor, other.load_tower().state_dict()[name])


def test_vllm_gets_embeddings_of_one_level_and_the_grids(checkpoint: Path) -> None:
    family = resolve_family(checkpoint)
    record = EncoderTokens("p", torch.zeros(50, 128), (25, 25), ((1, 10, 10),) * 2, 0, 0)
    image = family.image_inputs(record)["image"]
    assert image["image_embeds"].shape == (50, 128)
    assert image["image_grid_thw"].tolist() == [[1, 10, 10]] * 2
    assert family.engine_prompt_ids((3, 1, 2)) == [3, 1, 2]


def test_the_turn_opens_as_the_familys_chat_template_does(checkpoint: Path) -> None:
    chat = resolve_family(checkpoint).chat_format
    assert chat.before_user == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


def test_sliding_windows_in_the_language_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    text.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    with pytest.raises(ModelError, match=r"sliding-window attention; expected full attention in every layer"):
        resolve_family(folder)
