"""Released sizes of each family by their configurations: parts of exactly the tensors of transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saga_dist.models.families import resolve_family
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.released_shapes import released_files
from saga_dist.models.weights import renamed

RELEASED = [
    *(f"Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")),
    *(f"Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
    *(f"InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
]
TOKENS_AT_224 = {"qwen3_vl": 49, "qwen2_5_vl": 64, "internvl": 64}


@pytest.mark.integration
@pytest.mark.parametrize("name", RELEASED)
def test_parts_have_the_tensors_of_the_whole_model(name: str, tmp_path: Path) -> None:
    """On no device: names and shapes alone, so the largest sizes cost seconds."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    files = released_files(name)
    assert files is not None
    for file_name, content in files.items():
        (tmp_path / file_name).write_text(json.dumps(content))
    config = files["config.json"]
    family = resolve_family(tmp_path)
    assert isinstance(family, CheckpointFamily)
    width = config.get("text_config", config)["hidden_size"]
    levels = len(config["vision_config"].get("deepstack_visual_indexes", ()))
    assert family.layout.wire_width == (1 + levels) * width
    side = 224 // family.layout.patch_size
    assert family.layout.num_tokens((1, side, side)) == TOKENS_AT_224[config["model_type"]]

    tied = config["tie_word_embeddings"]
    tower = family._empty_tower(dtype=torch.bfloat16, device="meta")
    backbone = family._empty_backbone(tied=tied, dtype=torch.bfloat16, device="meta")
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.bfloat16)
    prefixes = family.tower_prefixes | family.language_prefixes | ({} if tied else family.head_prefixes)
    expected = {key: tensor.shape for key, tensor in renamed(whole.state_dict().items(), prefixes)}
    if tied:
        del expected["lm_head.weight"]
    parts = {**tower.model.state_dict(), **backbone.state_dict()}
    assert {key: tensor.shape for key, tensor in parts.items()} == expected
