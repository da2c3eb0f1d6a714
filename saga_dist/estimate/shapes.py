"""Sizes of the configured model, from its config.json alone, on torch's meta device.

Parameters are counted on the modules that training builds, so the counts are those of a real run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saga_dist.config import RunConfig
from saga_dist.config.method import ModelSection
from saga_dist.errors import DataError, ModelError
from saga_dist.estimate.parameters import ParameterCount
from saga_dist.estimate.trained_part import TrainedPart, trained_part
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.model_files import is_local
from saga_dist.models.released_shapes import released_files, released_names
from saga_dist.runtime.build import model_path, torch_dtype
from saga_dist.types import Grid
from saga_dist.utils.output_files import write_file

MERGERS = ("merger", "multi_modal_projector")
"""Names of the tower modules that process tokens after merging; all other modules process patches."""


@dataclass(frozen=True, slots=True)
class TowerShape:
    """Sizes of the encoder tower at the run's image size."""

    weights: ParameterCount
    """Parameters of the tower, mergers included."""
    patches: int
    """Patches of one image, before merging."""
    tokens: int
    """N, tokens of one image, after merging."""
    patch_matmul_params: int
    """Number of weights that every patch is multiplied with: patch embedding and layers."""
    token_matmul_params: int
    """Number of weights that every token is multiplied with: mergers."""
    attention_macs: int
    """Multiply-accumulates of all attention scores of one image: query-key pairs of all layers, times ``width``."""
    layers: int
    """Number of transformer layers."""
    width: int
    """Width of the hidden states of a patch."""
    trained: TrainedPart
    """Part that trains."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of the frozen language model."""

    weights: ParameterCount
    """Parameters, embedding table and output layer included."""
    layer_matmul_params: int
    """Number of weights that every token is multiplied with, in all layers together."""
    layers: int
    """Number of decoder layers."""
    width: int
    """D, width of the hidden states."""
    heads: int
    """H, number of query heads."""
    kv_heads: int
    """Number of key and value heads."""
    head_dim: int
    """Width of one head."""
    vocabulary: int
    """V, size of the vocabulary."""
    tied: bool
    """True when the output layer is the transposed embedding table."""

    @property
    def attention_width(self) -> int:
        """Multiply-accumulates of one query-key pair's scores in all layers and heads: layers x heads x head_dim.

        The weighted sum of values takes as many again.
        """
        return self.layers * self.heads * self.head_dim

    @property
    def output_matmul_params(self) -> int:
        """Number of weights of the output layer."""
        return self.vocabulary * self.width

    def kv_bytes(self, value_bytes: int) -> int:
        """Returns the bytes of one token's keys and values in all layers, at ``value_bytes`` bytes per number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * value_bytes


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the configured model."""

    name: str
    """Path or hub name of the model."""
    source: str
    """Source of the sizes, as printed with them."""
    family: CheckpointFamily
    """Family of the model, bound to the checkpoint's configuration."""
    grid: Grid
    """Patch grid of an image of the run's size: frames, rows, columns."""
    tower: TowerShape
    """Sizes of the encoder tower."""
    decoder: DecoderShape
    """Sizes of the language model."""
    settings: ModelSection
    """Section ``[model]`` of the configuration, which names the part of the tower that trains."""
    wire_width: int
    """W = (1 + L) * D, width of encoder tokens on the wire."""
    dtype: torch.dtype
    """Data type of the frozen weights and of tokens on the wire."""

    @property
    def value_bytes(self) -> int:
        """Bytes of one number in ``dtype``."""
        return self.dtype.itemsize


@contextmanager
def model_shape(config: RunConfig) -> Iterator[ModelShape]:
    """Yields the sizes of the configured model; its family is usable only within the context.

    Raises:
        ModelError: there is no config.json on this machine or on the hub, and the name is no known release.
        DataError: the tower does not take images of the configured size.
    """
    path, revision = model_path(config), config.model.revision
    has_config = is_local(path, "config.json", revision)
    files = None if has_config else released_files(path)
    if files is None:
        try:
            family = resolve_family(path, revision=revision, family=config.model.family)
        except ModelError as error:
            if has_config:
                raise
            raise ModelError(
                f"{error}; and its name is of no release whose sizes are known",
                expected=f"a folder with config.json, or one of {released_names()}",
            ) from error
        yield _shape(config, family, path, f"config.json of {path}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            write_file(Path(folder) / name, json.dumps(content))
        source = f"released sizes of {path}: no config.json of it on this machine"
        yield _shape(config, resolve_family(folder, family=config.model.family), path, source)


def _shape(config: RunConfig, family: Family, name: str, source: str) -> ModelShape:
    if not isinstance(family, CheckpointFamily):
        raise ModelError(
            f"the sizes of model family {family.name!r} are not known",
            where=name,
            expected="a subclass of saga_dist.models.families.checkpoint_family.CheckpointFamily",
        )
    dtype = torch_dtype(config)
    tower, backbone = family.empty_tower(), family.empty_backbone(dtype=dtype)
    layout, side = family.layout, config.data.image_size
    if side % layout.pixels_per_token:
        raise DataError(
            f"data.image_size = {side}",
            where=name,
            expected=f"a multiple of {layout.pixels_per_token} (patch size x merge size)",
        )
    grid = (1, side // layout.patch_size, side // layout.patch_size)
    return ModelShape(
        name=name,
        source=source,
        family=family,
        grid=grid,
        tower=_tower_shape(family, tower, grid, config.model),
        decoder=_decoder_shape(family, backbone),
        settings=config.model,
        wire_width=layout.wire_width,
        dtype=dtype,
    )


def _tower_shape(family: CheckpointFamily, tower: Any, grid: Grid, settings: ModelSection) -> TowerShape:
    """Returns the sizes of a bare tower, which is changed to one that trains as configured."""
    vision = family.parsed.vision_config
    layers = int(vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers)
    patches, token_params, patch_params = grid[1] * grid[2], 0, 0
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            if any(merger in name for merger in MERGERS):
                token_params += module.weight.numel()
            else:
                patch_params += module.weight.numel()
    return TowerShape(
        weights=ParameterCount.of(tower),
        patches=patches,
        tokens=family.layout.num_tokens(grid),
        patch_matmul_params=patch_params,
        token_matmul_params=token_params,
        attention_macs=int(vision.hidden_size) * sum(_query_key_pairs(vision, layers, patches)),
        layers=layers,
        width=int(vision.hidden_size),
        trained=trained_part(tower, settings, blocks=layers),
    )


def _query_key_pairs(vision: Any, layers: int, patches: int) -> list[int]:
    """Returns the query-key pairs of one image in each layer: of all patches, or within windows (Qwen2.5-VL)."""
    if not hasattr(vision, "fullatt_block_indexes"):
        return [patches**2] * layers
    window = min(patches, (vision.window_size // vision.patch_size) ** 2)
    return [patches * (patches if layer in vision.fullatt_block_indexes else window) for layer in range(layers)]


def _decoder_shape(family: CheckpointFamily, backbone: Any) -> DecoderShape:
    text = family.parsed.text_config
    layers = backbone.language_model.layers
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    heads = int(text.num_attention_heads)
    head_dim = getattr(text, "head_dim", None)  # absent in Qwen2.5-VL's configuration
    return DecoderShape(
        weights=ParameterCount.of(backbone),
        layer_matmul_params=sum(module.weight.numel() for module in linear),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        heads=heads,
        kv_heads=int(text.num_key_value_heads),
        head_dim=int(head_dim or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        tied=family.tied,
    )
