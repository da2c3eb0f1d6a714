"""Random weights of a released architecture, made on the device from configuration sizes alone; nothing is downloaded.

The folder has the released sizes in its config.json and the stand-in's tokenizer, whose ids of image tokens replace the
released ones. There is no weight file.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from saga_dist.bench.random_groups import prompt_of_length, random_task, random_tokens
from saga_dist.config import RunConfig, parse_config
from saga_dist.diagnostics.gpu_check.sizes import SIZES, CheckSize
from saga_dist.errors import ConfigError
from saga_dist.estimate.shapes import ModelShape, model_shape
from saga_dist.estimate.token_counts import TokenCounts
from saga_dist.models.families.checkpoint_family import CheckpointFamily, ModelTower
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.models.released_shapes import released_files
from saga_dist.runtime.devices import choose_kernels, resolve_device
from saga_dist.standin.checkpoint import Architecture, model_config, write_side_files
from saga_dist.standin.tokenizer import SPECIAL_TOKENS
from saga_dist.types import EncoderTokens, ReplayTask
from saga_dist.utils.output_files import write_file
from saga_dist.workers.replay import ReplayWorker

ModuleT = TypeVar("ModuleT", bound=nn.Module)
TINY = Architecture(tower_depth=3, deepstack=(0, 2), layers=4)
"""Sizes of the tiny model."""
ARCHITECTURE = "Qwen3VLForConditionalGeneration"
COMPLETIONS_PER_CHUNK = 4
"""Completions in one chunk of replay, as in the shipped configurations of 8B models."""
DTYPE = torch.bfloat16
"""Dtype of the frozen weights and of the tower's autocast."""


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A model without weights on disk, and the configuration of a run with it."""

    size: CheckSize
    """Model and amount of work."""
    config: RunConfig
    """Configuration of a run of this size."""
    shape: ModelShape
    """Sizes of the model."""
    family: CheckpointFamily
    """Family bound to the folder."""
    device: torch.device
    """Device of all weights."""

    @property
    def side(self) -> int:
        """Tokens per side of an image."""
        return math.isqrt(self.shape.tower.tokens)

    @property
    def prompt_text(self) -> str:
        """Prompt of ``size.prompt_tokens`` tokens."""
        return prompt_of_length(self.family, self.size.prompt_tokens, side=self.side)

    @property
    def token_counts(self) -> TokenCounts:
        """Token counts of the replayed group."""
        ids = self.family.load_tokenizer().encode(self.prompt_text, add_special_tokens=False)
        lengths = self.size.lengths
        return TokenCounts(
            prompt=self.size.prompt_tokens,
            common_prefix=ids.index(self.family.parsed.image_token_id),
            completion=sum(lengths) / len(lengths),
            prompt_source="given",
            completion_source="given",
        )

    def tower(self) -> ModelTower:
        """Returns the vision tower with random float32 weights."""
        return fill_randomly(self.family.empty_tower(str(self.device)), seed=1)

    def backbone(self, *, layers: int | None = None) -> DecoderBackbone:
        """Returns the frozen language model with random weights in ``DTYPE``.

        Args:
            layers: number of decoder layers; None for all.
        """
        family = self.family
        if layers is not None:
            text = {**family.config["text_config"], "num_hidden_layers": layers}
            family = family.with_config({**family.config, "text_config": text})
        return fill_randomly(family.empty_backbone(str(self.device), dtype=DTYPE), seed=2)

    def replay_worker(self, backbone: DecoderBackbone) -> ReplayWorker:
        """Returns a replay worker with the prompt and chunks of a run."""
        return ReplayWorker(
            backbone,
            family=self.family,
            prompt_text=self.prompt_text,
            kl_layer=backbone.num_layers - 1,
            completions_per_chunk=COMPLETIONS_PER_CHUNK,
        )

    def tokens(self, seed: int = 1) -> EncoderTokens:
        """Returns random encoder tokens of a pair, in ``DTYPE`` on the CPU, as replay workers receive them."""
        tokens = random_tokens(self.family, side=self.side, seed=seed)
        return replace(tokens, values_NW=tokens.values_NW.to(DTYPE))

    def task(self, tokens: EncoderTokens, lengths: tuple[int, ...] | None = None, *, seed: int = 0) -> ReplayTask:
        """Returns the task to replay a group of random completions.

        Args:
            tokens: encoder tokens of the pair.
            lengths: tokens of each completion; None for those of the size.
            seed: seed of the completions.
        """
        return random_task(lengths or self.size.lengths, self.shape.decoder.vocabulary, tokens, seed=seed)


@contextmanager
def random_model(size_name: str) -> Iterator[RandomModel]:
    """Yields the model of a size, and prepares torch as in a process that trains; it is usable within the context.

    Args:
        size_name: a key of ``SIZES``.

    Raises:
        ConfigError: the size is a released one, and torch has no GPU.
    """
    size, device = SIZES[size_name], resolve_device("auto")
    if size.release and device.type == "cpu":
        raise ConfigError(f"{size.release} on a CPU", where="check-gpu", expected="a GPU that torch can use")
    choose_kernels(device)
    with tempfile.TemporaryDirectory(prefix="saga-check-gpu-") as folder:
        write_model_folder(Path(folder), size)
        config = check_config(Path(folder), size)
        with model_shape(config) as shape:
            yield RandomModel(size, config, shape, shape.family, device)


def write_model_folder(folder: Path, size: CheckSize) -> None:
    """Writes configuration, tokenizer and processors of a model into an existing folder, and no weights."""
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    if size.release:
        files = released_files(size.release)
        assert files is not None
        config: dict[str, Any] = files["config.json"]
        patch_size, merge_size = (files["preprocessor_config.json"][name] for name in ("patch_size", "merge_size"))
        architecture = Architecture(image_size=size.image_size, patch_size=patch_size, merge_size=merge_size)
    else:
        config, architecture = model_config(TINY).to_dict(), TINY
    special = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    write_file(folder / "config.json", json.dumps({**config, **special, "architectures": [ARCHITECTURE]}, indent=2))
    write_side_files(folder, architecture)


def check_config(folder: Path, size: CheckSize) -> RunConfig:
    """Returns the configuration of a run of this size, with the settings of the shipped 8B configurations.

    Args:
        folder: folder of the model.
        size: size of the check.
    """
    return parse_config(
        {
            "data": {
                "layout": "birds",  # not read: the images are random
                "image_size": size.image_size,
                "batch_size": size.batch_size,
                "images_per_class": size.images_per_class,
            },
            "prompt": {"vocabulary": "standin_birds"},
            "model": {"path": str(folder), "dtype": "bfloat16", "embedding_dim": size.embedding_dim},
            "rollout": {"pairs_per_batch": size.pairs, "group_size": len(size.lengths), "max_tokens": size.longest},
            "optimizer": {"gradient_checkpointing": True},
            "runtime": {"kind": "serial"},
        },
        where="check-gpu",
    )


@torch.no_grad()
def fill_randomly(module: ModuleT, *, seed: int) -> ModuleT:
    """Fills a module with weights under which activations keep their size, in place, and returns it.

    Matrices are normal with a variance of 1 / inputs, scales are one and shifts are zero. The numbers are drawn on the
    device of the weights.

    Args:
        module: module with uninitialised weights.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=math.prod(weight.shape[1:]) ** -0.5)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    return module
