"""Bytes that autograd keeps for the backward pass, counted on the real modules instead of guessed from a formula.

The decoder runs on fake tensors (shapes and dtypes, no numbers) with few layers and with one more; the tower likewise,
for real, on images of one token. Every layer keeps the same, so two runs give any depth. What is kept is what
``saved_tensors_hooks`` sees, each storage once, weights left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from saga_dist.estimate.shapes import ModelShape
from saga_dist.models.families.base import VisionTower
from saga_dist.models.families.key_values import KeyValues

FEW = 2
"""Layers of the smaller decoder, where DeepStack does not need more."""


@dataclass(frozen=True, slots=True)
class SavedBytes:
    """Bytes that grow with the tower's depth."""

    base: int
    """Patches, mergers and what else there is once."""
    layer: int
    """Of every layer."""

    def of(self, layers: int) -> int:
        """Returns the bytes of a tower with so many layers."""
        return self.base + layers * self.layer


@dataclass(frozen=True, slots=True)
class TowerActivations:
    """What one forward pass of the tower keeps."""

    layers: int
    image: SavedBytes
    """Per image."""
    whole: SavedBytes
    """Whatever the number of images: under autocast, a copy of every weight in half precision."""
    layer_input: int
    """Per image and layer: what checkpointing keeps of it."""

    def bytes(self, num_images: float, *, checkpointing: bool = False) -> int:
        """Returns the bytes that a pass over so many images keeps; with checkpointing the largest while one layer is
        run again."""
        if checkpointing:
            image = self.image.of(1) + self.layers * self.layer_input
            return round(self.whole.of(1) + num_images * image)
        return round(self.whole.of(self.layers) + num_images * self.image.of(self.layers))


@dataclass(frozen=True, slots=True)
class ReplayActivations:
    """What replay of one group keeps in the decoder."""

    prefix: int
    """The prompt's graph, keys and values included."""
    chunk: int
    """The graph of one chunk of completions on top."""


def saved_bytes(work: Callable[[], object], weights: Iterable[torch.Tensor]) -> int:
    """Returns the bytes that autograd keeps while ``work`` builds its graph.

    Args:
        work: a forward pass; what it returns keeps the graph alive.
        weights: not counted: they are there anyway.
    """
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, storage)  # held, so that its place is not taken by another one
        # An output as it is would hold its own graph and, out of the collector's sight, all of this for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = work()
    del graph
    return sum(storage.nbytes() for storage in kept.values())


# ---------------------------------------------------------------------- the tower


def tower_activations(shape: ModelShape, *, autocast: bool) -> TowerActivations:
    """Returns what the tower keeps per image of the run's size and per pass.

    Args:
        shape: of the model.
        autocast: True where training runs the tower under bfloat16 autocast.
    """
    fewest = shape.family.layout.num_deepstack + 1
    (few_image, few_whole), (more_image, more_whole) = (
        _count_tower(shape, layers, autocast=autocast) for layers in (fewest, fewest + 1)
    )

    def kept(few: int, more: int) -> SavedBytes:
        return SavedBytes(base=few - fewest * (more - few), layer=more - few)

    return TowerActivations(
        layers=shape.tower.layers,
        image=kept(few_image, more_image),
        whole=kept(few_whole, more_whole),
        layer_input=4 * shape.tower.width * shape.tower.patches,  # the residual stream is float32 either way
    )


def _count_tower(shape: ModelShape, layers: int, *, autocast: bool) -> tuple[int, int]:
    """Bytes per image of the run's size, and per pass."""
    tower = shape.family.shaped_like(_with_layers(shape, tower=layers)).empty_tower("cpu")
    layout = shape.family.layout
    side = layout.pixels_per_token
    one, two = (_kept_by_tower(tower, side, count, autocast=autocast) for count in (1, 2))
    # In patches, so that a class token, where a family has one, does not count as often as there are patches.
    extra = 1 if shape.family.name == "internvl" else 0
    share = (shape.tower.patches + extra) / (layout.merge_size**2 + extra)
    return round((two - one) * share), 2 * one - two


def _kept_by_tower(tower: VisionTower, side: int, count: int, *, autocast: bool) -> int:
    pixels = tower.preprocess([np.zeros((side, side, 3), np.uint8)] * count)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            values: torch.Tensor = tower(pixels)
        return values

    return saved_bytes(forward, tower.parameters())


# ---------------------------------------------------------------------- the decoder


def replay_activations(shape: ModelShape, *, prefix: int, rows: int, columns: int) -> ReplayActivations:
    """Returns what replay keeps of one group.

    Args:
        shape: of the model.
        prefix: prompt tokens before the completions.
        rows: completions in one chunk.
        columns: tokens of each, the prompt's last one included.
    """
    fewest = min(max(FEW, shape.family.layout.num_deepstack), shape.decoder.layers)
    few, more = (_count_decoder(shape, layers, prefix, rows, columns) for layers in (fewest, fewest + 1))
    further = shape.decoder.layers - fewest
    return ReplayActivations(
        prefix=few.prefix + further * (more.prefix - few.prefix), chunk=few.chunk + further * (more.chunk - few.chunk)
    )


def _count_decoder(shape: ModelShape, layers: int, prefix: int, rows: int, columns: int) -> ReplayActivations:
    family, tokens = shape.family.shaped_like(_with_layers(shape, decoder=layers)), 2 * shape.tower.tokens
    # The output layer is counted apart, and building it would draw its weights.
    backbone = family.empty_backbone("cpu", dtype=shape.dtype, tied=True)
    # DeepStack maps are added in place of nothing: autograd keeps where, which is small, and fake tensors cannot.
    backbone.layout = replace(backbone.layout, num_deepstack=0)
    prompt_ids = [int(family.parsed.image_token_id)] * 2 + [0] * (prefix - tokens)
    prompt = backbone.build_layout(prompt_ids, [shape.grid] * 2)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [fake.from_tensor(tensor) for tensor in (*backbone.parameters(), *backbone.buffers())]
    with fake:
        values_NW = torch.zeros(tokens, shape.decoder.width, requires_grad=True)
        past: list[KeyValues] = []
        span = slice(0, prefix)
        kept_prefix = saved_bytes(lambda: past.append(backbone.prefill(prompt, values_NW, span)), weights)
        leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in past[0])
        token_ids_GT = torch.zeros(rows, columns, dtype=torch.int64)
        kept_chunk = saved_bytes(
            lambda: backbone.forward_completions(leaves, token_ids_GT, prompt.next_position), weights
        )
    return ReplayActivations(kept_prefix, kept_chunk)


def _with_layers(shape: ModelShape, *, tower: int | None = None, decoder: int | None = None) -> dict[str, Any]:
    """The model's configuration with another number of layers."""
    config = shape.family.parsed.to_dict()
    if decoder is not None:
        text = config["text_config"]
        text["num_hidden_layers"] = decoder
        if text.get("layer_types"):
            text["layer_types"] = text["layer_types"][:1] * decoder
    if tower is not None:
        vision = config["vision_config"]
        vision["depth" if "depth" in vision else "num_hidden_layers"] = tower
        if "deepstack_visual_indexes" in vision:
            vision["deepstack_visual_indexes"] = list(range(shape.family.layout.num_deepstack))
    return config
