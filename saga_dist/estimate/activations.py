"""Activation memory: bytes that autograd saves for the backward pass, counted on the real modules, not modelled.

The decoder runs on fake tensors (shapes and dtypes without values), once with few layers and once with one layer more.
The tower runs in the same two depths on real tensors, with images of one token. Every layer saves the same number of
bytes, so two runs give the bytes of any depth. ``saved_tensors_hooks`` reports the saved tensors; each storage counts
once, and weights do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from saga_dist.estimate.shapes import ModelShape
from saga_dist.models.families.base import VisionTower
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.trained_part import choose_trained

MIN_DECODER_LAYERS = 2
"""Layers of the smaller decoder, unless the family's DeepStack levels need more."""


@dataclass(frozen=True, slots=True)
class SavedBytes:
    """Bytes saved by a tower, as a linear function of its depth."""

    fixed: int
    """Bytes that do not depend on the depth: patch embedding, mergers."""
    per_layer: int
    """Bytes that each layer adds."""

    def total(self, num_layers: int) -> int:
        """Returns the bytes of a tower with ``num_layers`` layers."""
        return self.fixed + num_layers * self.per_layer


@dataclass(frozen=True, slots=True)
class TowerActivations:
    """Bytes that autograd saves in one forward pass of the tower."""

    num_layers: int
    """Layers of the tower."""
    per_image: SavedBytes
    """Bytes saved for each image."""
    per_pass: SavedBytes
    """Bytes saved once for all images and passes of a step: under autocast, a bfloat16 copy of the weights."""
    layer_input: int
    """Bytes of one layer's input for one image: the tensor that gradient checkpointing saves for each layer."""

    def bytes(self, num_images: float, *, checkpointing: bool = False) -> int:
        """Returns the bytes saved by a pass over ``num_images`` images.

        With checkpointing it is the peak: the inputs of all layers, and everything saved by the one layer that is
        being recomputed.
        """
        if checkpointing:
            image = self.per_image.total(1) + self.num_layers * self.layer_input
            return round(self.per_pass.total(1) + num_images * image)
        return round(self.per_pass.total(self.num_layers) + num_images * self.per_image.total(self.num_layers))


@dataclass(frozen=True, slots=True)
class ReplayActivations:
    """Bytes that autograd saves in the decoder during replay of one group."""

    prefix: int
    """Bytes of the prefix's graph, its keys and values included."""
    chunk: int
    """Bytes that the graph of one chunk of completions adds."""


def saved_bytes(forward: Callable[[], object], weights: Iterable[torch.Tensor]) -> int:
    """Returns the bytes that autograd saves while ``forward`` builds its graph.

    Args:
        forward: runs a forward pass; its return value keeps the graph alive.
        weights: tensors that are not counted, because they exist anyway.
    """
    excluded = {weight.untyped_storage()._cdata for weight in weights}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in excluded:
            # The reference keeps the storage alive, so that no later tensor reuses its address.
            saved.setdefault(storage._cdata, storage)
        # Returning an output itself would make a reference cycle through its graph that the garbage collector cannot
        # see, and the memory would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(storage.nbytes() for storage in saved.values())


# ---------------------------------------------------------------------- the tower


def tower_activations(shape: ModelShape, *, autocast: bool) -> TowerActivations:
    """Returns the bytes that the tower saves per image of the run's size and per pass.

    Args:
        shape: sizes of the model.
        autocast: True when training runs the tower under bfloat16 autocast.
    """
    split = _split_levels(shape)
    fewest = split.reached + 1
    (few_image, few_pass), (more_image, more_pass) = (
        _count_tower(shape, split, layers, autocast=autocast) for layers in (fewest, fewest + 1)
    )
    # The autocast copies of all weights exist during a step, also of those that the backward pass does not reach.
    skipped = torch.bfloat16.itemsize * shape.tower.trained.skipped_params if autocast else 0

    def linear_fit(few: int, more: int) -> SavedBytes:
        return SavedBytes(fixed=few - fewest * (more - few), per_layer=more - few)

    return TowerActivations(
        num_layers=shape.tower.trained.blocks,
        per_image=linear_fit(few_image, more_image),
        per_pass=linear_fit(few_pass + skipped, more_pass + skipped),
        layer_input=4 * shape.tower.width * shape.tower.patches,  # the residual stream is float32, autocast or not
    )


@dataclass(frozen=True, slots=True)
class _SplitLevels:
    """DeepStack levels of a tower whose last blocks train, and the constant blocks of the tower that is counted."""

    reached: int
    """Levels that the backward pass reaches: those of the blocks that train."""
    skipped: int
    """Levels of constant blocks."""
    constant_blocks: int
    """Constant blocks of the tower that is counted; one at least where there are any."""

    @property
    def blocks(self) -> list[int]:
        """Blocks of the levels in the tower that is counted: the first ones that are constant, and that train."""
        return [*range(self.skipped), *range(self.constant_blocks, self.constant_blocks + self.reached)]


def _split_levels(shape: ModelShape) -> _SplitLevels:
    levels, first = shape.family.layout.num_deepstack, shape.tower.layers - shape.tower.trained.blocks
    indexes = shape.family.parsed.vision_config.deepstack_visual_indexes if levels else ()
    skipped = sum(index < first for index in indexes)
    return _SplitLevels(levels - skipped, skipped, max(skipped, 1) if first else 0)


def _count_tower(shape: ModelShape, split: _SplitLevels, trained: int, *, autocast: bool) -> tuple[int, int]:
    """Returns the bytes saved by a tower with ``trained`` blocks that train: per image of the run's size, per pass."""
    config = _with_layers(shape, tower=split.constant_blocks + trained)
    if split.blocks:
        config["vision_config"]["deepstack_visual_indexes"] = split.blocks
    tower = shape.family.with_config(config).empty_tower("cpu")
    train = shape.settings.train if shape.settings.last_blocks is None else f"last:{trained}"
    choose_trained(tower, shape.settings.model_copy(update={"train": train}), seed=0)
    layout = shape.family.layout
    side = layout.pixels_per_token
    one, two = (_saved_by_tower(tower, side, count, autocast=autocast) for count in (1, 2))
    # The counted images have one token, that is merge_size ** 2 patches. InternVL adds one class token per image,
    # whatever the image's size, so it must not be scaled with the number of patches.
    class_tokens = 1 if shape.family.name == "internvl" else 0
    scale = (shape.tower.patches + class_tokens) / (layout.merge_size**2 + class_tokens)
    return round((two - one) * scale), 2 * one - two


def _saved_by_tower(tower: VisionTower, side: int, count: int, *, autocast: bool) -> int:
    """Returns the bytes saved by a pass over ``count`` square images of ``side`` pixels."""
    pixels = tower.preprocess([np.zeros((side, side, 3), np.uint8)] * count)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            values: torch.Tensor = tower(pixels)
        return values

    return saved_bytes(forward, tower.parameters())


# ---------------------------------------------------------------------- the decoder


def replay_activations(shape: ModelShape, *, prefix: int, lengths: Sequence[int]) -> ReplayActivations:
    """Returns the bytes that autograd saves in the decoder during replay of one group, which runs packed.

    Args:
        shape: sizes of the model.
        prefix: prompt tokens before the completions.
        lengths: tokens of each completion of one chunk, the prompt's last token included.
    """
    fewest = min(max(MIN_DECODER_LAYERS, shape.family.layout.num_deepstack), shape.decoder.layers)
    few, more = (_count_decoder(shape, layers, prefix, lengths) for layers in (fewest, fewest + 1))
    further = shape.decoder.layers - fewest
    return ReplayActivations(
        prefix=few.prefix + further * (more.prefix - few.prefix), chunk=few.chunk + further * (more.chunk - few.chunk)
    )


def _count_decoder(shape: ModelShape, layers: int, prefix: int, lengths: Sequence[int]) -> ReplayActivations:
    family, tokens = shape.family.with_config(_with_layers(shape, decoder=layers)), 2 * shape.tower.tokens
    # Tied embeddings leave out the output layer: logits are counted separately, and creating the layer would initialise
    # its weights.
    backbone = family.empty_backbone("cpu", dtype=shape.dtype, tied=True)
    # Without DeepStack maps: adding them saves only the indices, which are small, and fails on fake tensors.
    backbone.layout = replace(backbone.layout, num_deepstack=0)
    prompt_ids = [int(family.parsed.image_token_id)] * 2 + [0] * (prefix - tokens)
    prompt = backbone.build_layout(prompt_ids, [shape.grid] * 2)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [fake.from_tensor(tensor) for tensor in (*backbone.parameters(), *backbone.buffers())]
    with fake:
        values_NW = torch.zeros(tokens, shape.decoder.width, requires_grad=True)
        past: list[KeyValues] = []
        span = slice(0, prefix)
        prefix_bytes = saved_bytes(lambda: past.append(backbone.prefill(prompt, values_NW, span)), weights)
        leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in past[0])
        sequences = [torch.zeros(length, dtype=torch.int64) for length in lengths]
        chunk_bytes = saved_bytes(lambda: backbone.forward_packed(leaves, sequences, prompt.next_position), weights)
    return ReplayActivations(prefix_bytes, chunk_bytes)


def _with_layers(shape: ModelShape, *, tower: int | None = None, decoder: int | None = None) -> dict[str, Any]:
    """Returns the model's configuration with other numbers of layers."""
    config = shape.family.parsed.to_dict()
    if decoder is not None:
        text = config["text_config"]
        text["num_hidden_layers"] = decoder
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:1] * decoder
    if tower is not None:
        vision = config["vision_config"]
        vision["depth" if "depth" in vision else "num_hidden_layers"] = tower
    return config
