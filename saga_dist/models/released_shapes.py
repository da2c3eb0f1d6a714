"""Sizes of released checkpoints, as in their config.json, for models that are not on this machine yet.

They are used only when neither the folder nor the Hugging Face cache has a config.json; the printed source says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# width, layers, heads, MLP width, tied; tower width, depth, MLP width, DeepStack layers
_QWEN3_VL: dict[str, tuple[Any, ...]] = {
    "2B": (2048, 28, 16, 6144, True, 1024, 24, 4096, [5, 11, 17]),
    "4B": (2560, 36, 32, 9728, True, 1024, 24, 4096, [5, 11, 17]),
    "8B": (4096, 36, 32, 12288, False, 1152, 27, 4304, [8, 16, 24]),
    "32B": (5120, 64, 64, 25600, False, 1152, 27, 4304, [8, 16, 24]),
}
# width, layers, heads, key heads, MLP width, tied, vocabulary; tower MLP width
_QWEN2_5_VL: dict[str, tuple[Any, ...]] = {
    "3B": (2048, 36, 16, 2, 11008, True, 151936, 3420),
    "7B": (3584, 28, 28, 4, 18944, False, 152064, 3420),
    "32B": (5120, 64, 40, 8, 27648, False, 152064, 3456),
    "72B": (8192, 80, 64, 8, 29568, False, 152064, 3456),
}
# width, layers, heads, MLP width, tied; tower width, depth, heads, MLP width
_INTERNVL3_5: dict[str, tuple[Any, ...]] = {
    "1B": (1024, 28, 16, 3072, True, 1024, 24, 16, 4096),
    "2B": (2048, 28, 16, 6144, True, 1024, 24, 16, 4096),
    "4B": (2560, 36, 32, 9728, True, 1024, 24, 16, 4096),
    "8B": (4096, 36, 32, 12288, False, 1024, 24, 16, 4096),
    "14B": (5120, 40, 40, 17408, False, 1024, 24, 16, 4096),
    "38B": (5120, 64, 64, 25600, False, 3200, 45, 25, 12800),
}
_NAMES = {
    "qwen3_vl": (r"Qwen3-VL-(\w+)-(?:Instruct|Thinking)", _QWEN3_VL),
    "qwen2_5_vl": (r"Qwen2\.5-VL-(\w+)-Instruct", _QWEN2_5_VL),
    "internvl": (r"InternVL3_5-(\w+)-HF", _INTERNVL3_5),
}


def released_files(name: str) -> dict[str, dict[str, Any]] | None:
    """Returns the parts of ``config.json`` and ``preprocessor_config.json`` that determine a released model's sizes.

    Returns None for a name that is no known release.

    Args:
        name: hub name or folder; only its last component is compared, e.g. ``Qwen3-VL-8B-Instruct``.
    """
    last = name.rstrip("/").rpartition("/")[2]
    for family, (pattern, sizes) in _NAMES.items():
        found = re.fullmatch(pattern, last)
        if found and found[1] in sizes:
            build = _FAMILIES[family]
            return build(*sizes[found[1]])
    return None


def released_names() -> str:
    """Returns the releases that ``released_files`` has, in one line for error messages."""
    return ", ".join(
        f"{name} {'/'.join(sizes)}"
        for name, sizes in (("Qwen3-VL", _QWEN3_VL), ("Qwen2.5-VL", _QWEN2_5_VL), ("InternVL3.5", _INTERNVL3_5))
    )


def _text(width: int, layers: int, heads: int, key_heads: int, mlp: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": mlp,
        "vocab_size": 151936,
    }


def _qwen3_vl(
    width: int, layers: int, heads: int, mlp: int, tied: bool, tower: int, depth: int, tower_mlp: int, levels: list[int]
) -> dict[str, dict[str, Any]]:
    rotation = {"rope_type": "default", "rope_theta": 5000000, "mrope_section": [24, 20, 20]}
    vision = {
        "hidden_size": tower,
        "depth": depth,
        "intermediate_size": tower_mlp,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": width,
        "deepstack_visual_indexes": levels,
    }
    text = {**_text(width, layers, heads, 8, mlp), "head_dim": 128, "rope_parameters": rotation}
    return {
        "config.json": {
            "model_type": "qwen3_vl",
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": tied,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "patch_size": 16,
            "merge_size": 2,
        },
    }


def _qwen2_5_vl(
    width: int, layers: int, heads: int, key_heads: int, mlp: int, tied: bool, vocabulary: int, tower_mlp: int
) -> dict[str, dict[str, Any]]:
    vision = {"hidden_size": 1280, "intermediate_size": tower_mlp, "depth": 32, "out_hidden_size": width}
    return {
        "config.json": {
            "model_type": "qwen2_5_vl",
            **_text(width, layers, heads, key_heads, mlp),
            "vocab_size": vocabulary,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "use_sliding_window": False,
            "tie_word_embeddings": tied,
            "vision_config": vision,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 14,
            "merge_size": 2,
        },
    }


def _internvl(
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    tied: bool,
    tower: int,
    depth: int,
    tower_heads: int,
    tower_mlp: int,
) -> dict[str, dict[str, Any]]:
    large = tower > 1024  # InternViT-6B has RMS norms, norms on queries and keys, and no attention biases
    vision = {
        "hidden_size": tower,
        "num_hidden_layers": depth,
        "num_attention_heads": tower_heads,
        "intermediate_size": tower_mlp,
        "attention_bias": not large,
        "use_qk_norm": large,
        "norm_type": "rms_norm" if large else "layer_norm",
    }
    text = {**_text(width, layers, heads, 8, mlp), "head_dim": 128, "model_type": "qwen3", "tie_word_embeddings": tied}
    return {
        "config.json": {
            "model_type": "internvl",
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": tied,
        },
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": 448, "width": 448},
        },
    }


_FAMILIES: dict[str, Callable[..., dict[str, dict[str, Any]]]] = {
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "internvl": _internvl,
}
