"""Hugging Face folders of tiny Qwen3-VL models: the shipped stand-in, verified by hash, and random ones for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.errors import CheckpointError, ModelError
from saga_dist.standin.tokenizer import SPECIAL_TOKENS, build_tokenizer
from saga_dist.utils.atomic_io import file_sha256
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder, write_file

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

WEIGHTS_FOLDERS = {0: Path(__file__).parent / "weights", 1: Path(__file__).parent / "weights_1"}
"""Folders of the shipped weights by the seed of their pre-training."""
MANIFEST_NAME = "MANIFEST.json"

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a tiny Qwen3-VL; the defaults are the shipped stand-in's (25 tokens for an 80-pixel image).

    Raises:
        ModelError: the sizes contradict each other.
    """

    image_size: int = 80
    """Side of the square images in pixels, a multiple of ``patch_size * merge_size``."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    merge_size: int = 2
    """Patches per side that are merged into one token."""
    tower_depth: int = 1
    """Layers of the vision tower."""
    tower_width: int = 96
    """Hidden size of the vision tower."""
    tower_heads: int = 4
    """Attention heads of the vision tower."""
    deepstack: tuple[int, ...] = (0,)
    """Tower layers whose output is also added to the first language layers; at most ``layers``."""
    layers: int = 3
    """Layers of the language model."""
    width: int = 128
    """D, hidden size of the language model."""
    heads: int = 4
    """Query heads of the language model."""
    kv_heads: int = 2
    """Key and value heads of the language model."""
    head_dim: int = 32
    """Width of an attention head of the language model."""
    intermediate: int = 256
    """Width of the MLP of the language model."""
    max_positions: int = 4096
    """Longest sequence of the language model in tokens."""
    language_init_std: float = 0.02
    """Standard deviation of the language model's initial weights."""

    def __post_init__(self) -> None:
        where = "stand-in architecture"
        if self.image_size % (self.patch_size * self.merge_size):
            raise ModelError(
                f"image_size = {self.image_size}",
                where=where,
                expected=f"a multiple of patch_size * merge_size = {self.patch_size * self.merge_size}",
            )
        if any(not 0 <= level < self.tower_depth for level in self.deepstack) or len(self.deepstack) > self.layers:
            raise ModelError(
                f"deepstack = {self.deepstack}",
                where=where,
                expected=f"at most {self.layers} tower layers below {self.tower_depth}",
            )


def checkpoint_path(seed: int = 0) -> Path:
    """Returns the folder of a shipped stand-in after checking every file against its manifest.

    Args:
        seed: seed of its pre-training, a key of ``WEIGHTS_FOLDERS``.

    Raises:
        CheckpointError: the manifest is not readable, or a file is missing or altered.
    """
    verify_manifest(WEIGHTS_FOLDERS[seed])
    return WEIGHTS_FOLDERS[seed]


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder after comparing every listed file with its recorded sha256.

    Raises:
        CheckpointError: the manifest is not readable, or a file is missing or altered.
    """
    path = folder / MANIFEST_NAME
    fix = "install the package again, or make the weights with python -m saga_dist.standin.pretrain --out DIR"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        recorded = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("no readable manifest", where=str(path), fix=fix) from error
    for name, digest in recorded.items():
        file = folder / name
        try:
            found = file_sha256(file)
        except OSError as error:
            raise CheckpointError(f"cannot be read ({error.strerror})", where=str(file), fix=fix) from error
        if found != digest:
            raise CheckpointError(f"sha256 {found[:12]}…", where=str(file), expected=f"{digest[:12]}…", fix=fix)
    return manifest


def write_manifest(folder: Path, **facts: Any) -> Path:
    """Writes a manifest with the sha256 of every file in ``folder`` and with ``facts``; returns its path."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST_NAME)
    manifest = {**facts, "sha256": {file.name: file_sha256(file) for file in files}}
    path = folder / MANIFEST_NAME
    write_file(path, json.dumps(manifest, indent=2) + "\n")
    return path


def write_random_checkpoint(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Writes a complete model folder with random weights and returns ``folder``.

    Args:
        folder: folder to write, created if it is missing.
        seed: seed of the weights.
        overrides: fields of ``Architecture``.

    Raises:
        ModelError: a size is unknown, or the sizes contradict each other.
    """
    unknown = set(overrides) - {field.name for field in fields(Architecture)}
    if unknown:
        names = ", ".join(field.name for field in fields(Architecture))
        raise ModelError(f"unknown size {sorted(unknown)[0]!r}", where="stand-in architecture", expected=names)
    architecture = replace(Architecture(), **overrides)
    return save_checkpoint(build_model(architecture, seed=seed), architecture, folder)


def build_model(architecture: Architecture, *, seed: int) -> Qwen3VLForConditionalGeneration:
    """Returns a randomly initialised float32 model in evaluation mode; the global random state is unchanged."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(model_config(architecture)).float().eval()


def model_config(architecture: Architecture) -> Qwen3VLConfig:
    """Returns the Hugging Face configuration of a model of these sizes."""
    from transformers import Qwen3VLConfig

    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    half = architecture.head_dim // 2
    rows = architecture.image_size // architecture.patch_size
    text = {
        "vocab_size": -(-build_tokenizer().get_vocab_size() // 8) * 8,
        "hidden_size": architecture.width,
        "intermediate_size": architecture.intermediate,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.max_positions,
        "initializer_range": architecture.language_init_std,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half - 2 * (half // 4), half // 4, half // 4],
            "mrope_interleaved": True,
        },
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": architecture.tower_depth,
        "hidden_size": architecture.tower_width,
        "intermediate_size": 2 * architecture.tower_width,
        "num_heads": architecture.tower_heads,
        "patch_size": architecture.patch_size,
        "spatial_merge_size": architecture.merge_size,
        "temporal_patch_size": 2,
        "out_hidden_size": architecture.width,
        "num_position_embeddings": rows * rows,
        "deepstack_visual_indexes": list(architecture.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def save_checkpoint(model: Qwen3VLForConditionalGeneration, architecture: Architecture, folder: Path) -> Path:
    """Writes weights, configuration, tokenizer and processors of a model into ``folder`` and returns ``folder``."""
    make_folder(folder)
    with output_errors(folder):
        model.save_pretrained(folder)
    write_side_files(folder, architecture)
    return folder


def write_side_files(folder: Path, architecture: Architecture) -> None:
    """Writes tokenizer, chat template and processors into an existing folder.

    Args:
        folder: folder of the model.
        architecture: sizes; only image, patch and merge size and ``max_positions`` count here.
    """
    with output_errors(folder):
        build_tokenizer().save(str(folder / "tokenizer.json"))
    write_file(folder / "chat_template.jinja", _CHAT_TEMPLATE)
    for name, content in _side_files(architecture).items():
        write_file(folder / name, json.dumps(content, indent=2) + "\n")


def _side_files(architecture: Architecture) -> dict[str, dict[str, Any]]:
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    pixels = architecture.image_size**2
    image_processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor",
        # Equal bounds scale every square image to image_size, so that all images have the same number of tokens.
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "patch_size": architecture.patch_size,
        "temporal_patch_size": 2,
        "merge_size": architecture.merge_size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {
        "preprocessor_config.json": image_processor,
        "video_preprocessor_config.json": {
            **{key: value for key, value in image_processor.items() if key != "image_processor_type"},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Qwen3VLProcessor",
            "model_max_length": architecture.max_positions,
            "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        },
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    }
