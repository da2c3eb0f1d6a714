"""Which checkpoints are taken, told from config.json alone, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saga_dist.errors import ModelError
from saga_dist.models.supported import SUPPORTED_FAMILIES, supported_family
from saga_dist.runtime.preflight import check_model_files


def test_supported_checkpoints_are_named_before_anything_is_loaded(family_checkpoint: Path) -> None:
    name = json.loads((family_checkpoint / "config.json").read_text())["model_type"]
    assert name in SUPPORTED_FAMILIES
    assert check_model_files(str(family_checkpoint)) == name


@pytest.mark.parametrize(
    ("config", "said", "instead"),
    [
        (
            {"model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"]},
            "model family 'qwen3_vl_moe' is not supported; expected qwen3_vl (Qwen3VLForConditionalGeneration), ",
            "choose a dense Qwen3-VL (2B, 4B, 8B or 32B)",
        ),
        ({"model_type": "internvl_chat"}, "model family 'internvl_chat'", "its name ends in -HF"),
        ({"model_type": "qwen2_vl"}, "model family 'qwen2_vl'", "choose a Qwen2.5-VL or a Qwen3-VL"),
        ({"model_type": "llama"}, "model family 'llama'", "choose such a checkpoint"),
        ({}, "model family 'None'", "choose such a checkpoint"),
        (
            {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForRewards"]},
            "architecture Qwen2_5_VLForRewards is not supported",
            "qwen2_5_vl (Qwen2_5_VLForConditionalGeneration)",
        ),
        (
            {"model_type": "internvl", "text_config": {"model_type": "qwen2"}},
            "InternVL with language model 'qwen2' is not supported",
            "choose a dense InternVL3.5",
        ),
    ],
)
def test_everything_else_is_one_clear_line(config: dict[str, object], said: str, instead: str) -> None:
    with pytest.raises(ModelError) as caught:
        supported_family(config, where="some/model")
    message = str(caught.value)
    assert message.startswith(f"some/model: {said}")
    assert instead in message
    assert "\n" not in message
