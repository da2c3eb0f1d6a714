"""Tiny random-weight checkpoints of every supported family, made with transformers' own classes, for tests.

All weights are random, including those that are zero or one in a new model (biases, norms, position tables), so that a
part that is left out or used twice changes the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.errors import ModelError
from saga_dist.models.supported import SUPPORTED_FAMILIES
from saga_dist.standin.checkpoint import write_random_checkpoint
from saga_dist.standin.tokenizer import SPECIAL_TOKENS, build_tokenizer
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder, write_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import InternVLConfig, PreTrainedModel, Qwen2_5_VLConfig

IMAGE_SIZE, PATCH_SIZE, MERGE_SIZE = 80, 8, 2
WIDTH, LAYERS = 128, 4
MATRIX_GAIN, VECTOR_STD = 4.0, 0.1
"""Factor on the matrices of a new model, so that every layer affects the result; standard deviation of the noise added
to vectors."""

INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""InternVL's special tokens; the tokenizer's configuration names them for the family's own processor."""


def write_random_family(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Writes a complete model folder of a family, with 25 tokens for an 80-pixel image, and returns ``folder``.

    Args:
        folder: folder to write, created if it is missing.
        family: name of the family, one of ``SUPPORTED_FAMILIES``.
        seed: seed of the weights.

    Raises:
        ModelError: the family is not supported.
    """
    import torch

    if family not in SUPPORTED_FAMILIES:
        raise ModelError(f"model family {family!r}", where="stand-in", expected=", ".join(SUPPORTED_FAMILIES))
    if family == "qwen3_vl":
        write_random_checkpoint(folder, seed=seed, tower_depth=3, deepstack=(0, 2), layers=LAYERS)
        from transformers import Qwen3VLForConditionalGeneration

        model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return _save(_strengthened(model, seed), folder, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _write_qwen2_5_vl(folder, seed) if family == "qwen2_5_vl" else _write_internvl(folder, seed)


def _write_qwen2_5_vl(folder: Path, seed: int) -> Path:
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration(_qwen2_5_vl_config(tokenizer)).float()
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": 2,
        "merge_size": MERGE_SIZE,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    video = {name: value for name, value in processor.items() if name != "image_processor_type"}
    files = {
        "preprocessor_config.json": processor,
        "video_preprocessor_config.json": {**video, "video_processor_type": "Qwen2VLVideoProcessor"},
        "tokenizer_config.json": _tokenizer_config("Qwen2_5_VLProcessor"),
    }
    return _save(_strengthened(model, seed), folder, files, tokenizer)


def _qwen2_5_vl_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """Returns a configuration with windows of 2 x 2 tokens: an 80-pixel image has windows of three sizes, a 64-pixel
    image of one."""
    from transformers import Qwen2_5_VLConfig

    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "window_size": 2 * MERGE_SIZE * PATCH_SIZE,
        "fullatt_block_indexes": [1],
        "out_hidden_size": WIDTH,
    }
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
    return Qwen2_5_VLConfig(
        text_config={**_text_sizes(tokenizer), "rope_parameters": rotation},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _write_internvl(folder: Path, seed: int) -> Path:
    from tokenizers import AddedToken
    from transformers import InternVLForConditionalGeneration

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in INTERNVL_TOKENS.values()]
    )
    config = _internvl_config(tokenizer)
    model = InternVLForConditionalGeneration(config).float()
    processor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    video = {name: processor[name] for name in ("processor_class", "size", "image_mean", "image_std")}
    files = {
        "preprocessor_config.json": processor,
        "video_preprocessor_config.json": {**video, "video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": config.image_seq_length},
        "tokenizer_config.json": {**_tokenizer_config("InternVLProcessor"), "extra_special_tokens": INTERNVL_TOKENS},
    }
    return _save(_strengthened(model, seed), folder, files, tokenizer)


def _internvl_config(tokenizer: Tokenizer) -> InternVLConfig:
    from transformers import InternVLConfig

    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "attention_bias": True,
        "intermediate_size": 96,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [PATCH_SIZE, PATCH_SIZE],
        "layer_scale_init_value": 1.0,
    }
    text = {**_text_sizes(tokenizer), "model_type": "qwen3", "head_dim": 32}
    return InternVLConfig(
        text_config={**text, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        vision_config=vision,
        image_token_id=tokenizer.token_to_id(INTERNVL_TOKENS["context_image_token"]),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE // MERGE_SIZE) ** 2,
        downsample_ratio=1 / MERGE_SIZE,
        tie_word_embeddings=False,
    )


def _text_sizes(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    return {
        "vocab_size": -(-tokenizer.get_vocab_size() // 8) * 8,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": False,
    }


def _tokenizer_config(processor: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": processor,
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }


def _strengthened(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Returns the model with scaled matrices and with noise added to vectors and all-zero parameters, in place."""
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(VECTOR_STD * torch.randn(parameter.shape, generator=generator))
            elif "layer" in name or "blocks." in name:
                parameter.mul_(MATRIX_GAIN)
    return model


def _save(
    model: PreTrainedModel, folder: Path, files: dict[str, dict[str, Any]], tokenizer: Tokenizer | None = None
) -> Path:
    make_folder(folder)
    with output_errors(folder):
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        write_file(folder / name, json.dumps(content, indent=2) + "\n")
    return folder
