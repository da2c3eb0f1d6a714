"""Sizes of the model behind a configuration: from its config.json, on torch's meta device, without weights.

Parameters are counted on the modules that training builds, so that they are what training has.
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
from saga_dist.errors import DataError, ModelError
from saga_dist.estimate.released_shapes import released_files, released_names
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.model_files import at_hand
from saga_dist.runtime.build import model_path, torch_dtype
from saga_dist.types import Grid

MERGERS = ("merger", "multi_modal_projector")
"""In the names of tower modules that see tokens; all others see patches."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A part's parameters."""

    params: int
    tensors: int

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Returns the size of a module, on whatever device; a tensor that is used twice counts once."""
        parameters = list(module.parameters())
        return cls(sum(parameter.numel() for parameter in parameters), len(parameters))


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The encoder's tower, at the run's image size."""

    weights: Weights
    patches: int
    """That one image has, before merging."""
    tokens: int
    """N."""
    patch_products: int
    """Weights that every patch is multiplied with."""
    token_products: int
    """Weights that every token is multiplied with: mergers."""
    attention_products: int
    """Query-key products of one image, all layers, times the tower's width."""
    layers: int
    width: int


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The frozen language model."""

    weights: Weights
    """Embedding table and output layer included."""
    layer_products: int
    """Weights that every token is multiplied with, in all layers."""
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def attention_width(self) -> int:
        """Heads x width of one, over all layers: what a query-key product costs, and a value."""
        return self.layers * self.heads * self.head_dim

    @property
    def head_products(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.width

    def kv_bytes(self, value_bytes: int) -> int:
        """Returns the bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * value_bytes


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a run's model is made of."""

    name: str
    source: str
    """Where the sizes come from, for the reader."""
    family: CheckpointFamily
    grid: Grid
    tower: TowerShape
    decoder: DecoderShape
    wire_width: int
    """W."""
    dtype: torch.dtype
    """Of frozen weights and of tokens on the wire."""

    @property
    def value_bytes(self) -> int:
        """Bytes of one number in ``dtype``."""
        return self.dtype.itemsize


@contextmanager
def model_shape(config: RunConfig) -> Iterator[ModelShape]:
    """Yields the sizes of the configured model; its family stays usable inside, for probes.

    Raises:
        ModelError: there is no config.json, here or on the hub, and the name is of no known release.
        DataError: the tower does not take images of this size.
    """
    path, revision = model_path(config), config.model.revision
    here = at_hand(path, "config.json", revision)
    files = None if here else released_files(path)
    if files is None:
        try:
            family = resolve_family(path, revision=revision, family=config.model.family)
        except ModelError as error:
            if here:
                raise
            raise ModelError(
                f"{error}; and its name is of no release whose sizes are known",
                expected=f"a folder with config.json, or one of {released_names()}",
            ) from error
        yield _shape(config, family, path, f"config.json of {path}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_text(json.dumps(content), "utf-8")
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
        tower=_tower_shape(family, tower, grid),
        decoder=_decoder_shape(family, backbone),
        wire_width=layout.wire_width,
        dtype=dtype,
    )


def _tower_shape(family: CheckpointFamily, tower: Any, grid: Grid) -> TowerShape:
    vision = family.parsed.vision_config
    layers = int(vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers)
    patches, products = grid[1] * grid[2], {True: 0, False: 0}
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            products[any(merger in name for merger in MERGERS)] += module.weight.numel()
    return TowerShape(
        weights=Weights.of(tower),
        patches=patches,
        tokens=family.layout.num_tokens(grid),
        patch_products=products[False],
        token_products=products[True],
        attention_products=int(vision.hidden_size) * sum(_attended(vision, layers, patches)),
        layers=layers,
        width=int(vision.hidden_size),
    )


def _attended(vision: Any, layers: int, patches: int) -> list[int]:
    """Query-key products of one image in each layer: all with all, or within windows (Qwen2.5-VL)."""
    if not hasattr(vision, "fullatt_block_indexes"):
        return [patches**2] * layers
    window = min(patches, (vision.window_size // vision.patch_size) ** 2)
    return [patches * (patches if layer in vision.fullatt_block_indexes else window) for layer in range(layers)]


def _decoder_shape(family: CheckpointFamily, backbone: Any) -> DecoderShape:
    text = family.parsed.text_config
    layers = backbone.language_model.layers
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    heads = int(text.num_attention_heads)
    head_dim = getattr(text, "head_dim", None)  # Qwen2.5-VL's configuration has none
    return DecoderShape(
        weights=Weights.of(backbone),
        layer_products=sum(module.weight.numel() for module in linear),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        heads=heads,
        kv_heads=int(text.num_key_value_heads),
        head_dim=int(head_dim or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        tied=family.tied,
    )
