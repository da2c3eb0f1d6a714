"""Released sizes of each family by their configurations: parts of exactly the tensors of transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_dist.models.families import resolve_family
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.weights import renamed

QWEN3_VL = {  # width, layers, heads, MLP width, tied; tower width, depth, MLP width, DeepStack layers
    "2B": (2048, 28, 16, 6144, True, 1024, 24, 4096, [5, 11, 17]),
    "4B": (2560, 36, 32, 9728, True, 1024, 24, 4096, [5, 11, 17]),
    "8B": (4096, 36, 32, 12288, False, 1152, 27, 4304, [8, 16, 24]),
    "32B": (5120, 64, 64, 25600, False, 1152, 27, 4304, [8, 16, 24]),
}
QWEN2_5_VL = {  # width, layers, heads, key heads, MLP width, tied
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
    "72B": (8192, 80, 64, 8, 29568, False),
}
INTERNVL3_5 = {  # width, layers, heads, MLP width, tied; tower width, depth, heads, MLP width
    "1B": (1024, 28, 16, 3072, True, 1024, 24, 16, 4096),
    "8B": (4096, 36, 32, 12288, False, 1024, 24, 16, 4096),
    "38B": (5120, 64, 64, 25600, False, 3200, 45, 25, 12800),
}


def qwen3_vl(size: str) -> dict[str, Any]:
    width, layers, heads, mlp, tied, tower, depth, tower_mlp, levels = QWEN3_VL[size]
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": mlp,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000000, "mrope_section": [24, 20, 20]},
    }
    vision = {
        "hidden_size": tower,
        "depth": depth,
        "intermediate_size": tower_mlp,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": width,
        "deepstack_visual_indexes": levels,
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def qwen2_5_vl(size: str) -> dict[str, Any]:
    """The language model's sizes lie at the top, as in the released files."""
    width, layers, heads, key_heads, mlp, tied = QWEN2_5_VL[size]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": mlp,
        "vocab_size": 152064 if size != "3B" else 151936,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "use_sliding_window": False,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "out_hidden_size": width},
    }


def internvl(size: str) -> dict[str, Any]:
    width, layers, heads, mlp, tied, tower, depth, tower_heads, tower_mlp = INTERNVL3_5[size]
    text = {
        "model_type": "qwen3",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": mlp,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
    }
    large = tower > 1024  # InternViT-6B: norms on queries and keys, RMS norms, no biases
    vision = {
        "hidden_size": tower,
        "num_hidden_layers": depth,
        "num_attention_heads": tower_heads,
        "intermediate_size": tower_mlp,
        "attention_bias": not large,
        "use_qk_norm": large,
        "norm_type": "rms_norm" if large else "layer_norm",
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


RELEASED = [
    *(pytest.param("qwen3_vl", qwen3_vl(size), id=f"Qwen3-VL-{size}") for size in QWEN3_VL),
    *(pytest.param("qwen2_5_vl", qwen2_5_vl(size), id=f"Qwen2.5-VL-{size}") for size in QWEN2_5_VL),
    *(pytest.param("internvl", internvl(size), id=f"InternVL3.5-{size}") for size in INTERNVL3_5),
]
PREPROCESSING = {
    "qwen3_vl": {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2},
    "qwen2_5_vl": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2},
    "internvl": {"image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 448, "width": 448}},
}
TOKENS_AT_224 = {"qwen3_vl": 49, "qwen2_5_vl": 64, "internvl": 64}


@pytest.mark.parametrize(("name", "config"), RELEASED)
def test_parts_have_the_tensors_of_the_whole_model(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """On no device: names and shapes alone, so the largest sizes cost seconds."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **config}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING[name]))
    family = resolve_family(tmp_path)
    assert isinstance(family, CheckpointFamily)
    width = config.get("text_config", config)["hidden_size"]
    levels = len(config["vision_config"].get("deepstack_visual_indexes", ()))
    assert family.layout.wire_width == (1 + levels) * width
    side = 224 // family.layout.patch_size
    assert family.layout.num_tokens((1, side, side)) == TOKENS_AT_224[name]

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
