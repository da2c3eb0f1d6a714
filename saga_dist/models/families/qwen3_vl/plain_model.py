"""The vision model of Qwen3-VL in plain torch, with the parameter names of transformers and its results to the bit.

Saved encoders use it, because importing the model from transformers costs several times as much processor time as
torch: the module has the language model too, and with it generation, caches and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from saga_dist.types import Grid

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
"""Activations of the layers by their name in a configuration."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The values of a vision configuration that determine the model."""

    depth: int
    """Number of layers."""
    hidden_size: int
    """Width of a patch's hidden state."""
    intermediate_size: int
    """Width of the hidden layer of each MLP."""
    num_heads: int
    """Attention heads of each layer."""
    in_channels: int
    """Channels of an image."""
    patch_size: int
    """Side of a patch in pixels."""
    temporal_patch_size: int
    """Frames of a patch."""
    spatial_merge_size: int
    """Patches along one side that are merged into one token."""
    out_hidden_size: int
    """D, width of a token."""
    num_position_embeddings: int
    """Entries of the square table of position embeddings."""
    deepstack_visual_indexes: tuple[int, ...]
    """Layers whose outputs give the DeepStack maps."""
    hidden_act: str
    """Activation of the MLPs, a key of ``ACTIVATIONS``."""
    rope_theta: float
    """Base of the rotary frequencies."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self | None:
        """Returns the configuration that transformers wrote as JSON; None when this model does not implement it.

        Raises:
            KeyError: a value is missing.
        """
        rope = values.get("rope_parameters") or {}
        if values["hidden_act"] not in ACTIVATIONS or rope.get("rope_type") != "axial" or "head_dim" in values:
            return None
        derived = {
            "deepstack_visual_indexes": tuple(values["deepstack_visual_indexes"]),
            "rope_theta": rope["rope_theta"],
        }
        own = {name: values[name] for name in cls.__dataclass_fields__ if name not in derived}
        return cls(**own, **derived)


class PatchEmbedding(nn.Module):
    """The convolution over one patch, computed as a matrix product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(self, pixels_PX: torch.Tensor) -> torch.Tensor:
        """Returns embedded patches, [P, hidden_size]."""
        weight = self.proj.weight.flatten(1)
        return F.linear(pixels_PX.to(weight.dtype), weight, self.proj.bias)


class Attention(nn.Module):
    """Attention of every patch to the patches of its own image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.hidden_size // config.num_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_PW: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the output, [P, hidden_size].

        Args:
            hidden_PW: [P, hidden_size].
            cu_seqlens: int [I + 1], cumulative numbers of patches, from 0.
            position_embeddings: cosines and sines of the rotation, [P, head_dim] each.
        """
        query, key, value = self.qkv(hidden_PW).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)
        query, key = (rotated(part, *position_embeddings) for part in (query, key))
        lengths = cu_seqlens.diff().tolist()
        if len(set(lengths)) == 1:  # one batch over images of one size is several times as fast
            output = self._attend(*(part.unflatten(0, (len(lengths), -1)) for part in (query, key, value)))
        else:
            parts = zip(*(part.split(lengths) for part in (query, key, value)), strict=True)
            output = torch.cat([self._attend(*(one[None] for one in image)) for image in parts], dim=1)
        return self.proj(output.reshape(len(hidden_PW), -1))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Returns the output of images of one size, [I, N, heads, head_dim], like each of the arguments."""
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=self.scaling).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_PW: torch.Tensor) -> torch.Tensor:
        """Returns [P, hidden_size]."""
        return self.linear_fc2(self._activation(self.linear_fc1(hidden_PW)))


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and around a residual connection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size, eps=1e-6) for _ in range(2))
        self.attn = Attention(config)
        self.mlp = Mlp(config)

    def forward(
        self, hidden_PW: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Returns [P, hidden_size]; the arguments are those of ``Attention``."""
        hidden_PW = hidden_PW + self.attn(self.norm1(hidden_PW), cu_seqlens, position_embeddings)
        return hidden_PW + self.mlp(self.norm2(hidden_PW))


class Merger(nn.Module):
    """Merges a square of neighbouring patches into one token.

    Args:
        config: configuration of the model.
        norm_after: True for the norm of the merged patches (DeepStack), False for that of each patch.
    """

    def __init__(self, config: VisionConfig, *, norm_after: bool) -> None:
        super().__init__()
        self._width, self._norm_after = config.hidden_size * config.spatial_merge_size**2, norm_after
        self.norm = nn.LayerNorm(self._width if norm_after else config.hidden_size, eps=1e-6)
        self.linear_fc1 = nn.Linear(self._width, self._width)
        self.linear_fc2 = nn.Linear(self._width, config.out_hidden_size)

    def forward(self, hidden_PW: torch.Tensor) -> torch.Tensor:
        """Returns tokens, [N, D]."""
        if self._norm_after:
            merged_NW = self.norm(hidden_PW.view(-1, self._width))
        else:
            merged_NW = self.norm(hidden_PW).view(-1, self._width)
        return self.linear_fc2(F.gelu(self.linear_fc1(merged_NW)))


class PlainVisionModel(nn.Module):
    """Patch embedding, position embeddings, layers, merger and DeepStack mergers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """True when the backward pass recomputes the activations of the layers."""
        self.patch_embed = PatchEmbedding(config)
        # Not nn.Embedding(…): its random values on the meta device import torch's compiler, which takes a second.
        table = torch.empty(config.num_position_embeddings, config.hidden_size)
        self.pos_embed = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config, norm_after=False)
        levels = config.deepstack_visual_indexes
        self.deepstack_merger_list = nn.ModuleList(Merger(config, norm_after=True) for _ in levels)

    def forward(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """Returns [N, (1 + L) * D]: merged tokens, then the DeepStack maps in the order of layers.

        Args:
            pixels_PX: preprocessed patches of all images, [P, X].
            grids: patch grid of each image, with one frame.
        """
        device = self.pos_embed.weight.device
        hidden_PW = self.patch_embed(pixels_PX)
        places = patch_places(grids, self.config.spatial_merge_size, device)
        hidden_PW = hidden_PW + self._position_embeddings(places).to(hidden_PW.dtype)
        rotation = rotary_angles(places.own_P2, self.config)
        lengths = torch.tensor([0, *(rows * columns for _, rows, columns in grids)], dtype=torch.int32, device=device)
        ends = lengths.cumsum(0, dtype=torch.int32)
        maps = []
        for number, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                hidden_PW = checkpoint(block, hidden_PW, ends, rotation, use_reentrant=False)
            else:
                hidden_PW = block(hidden_PW, cu_seqlens=ends, position_embeddings=rotation)
            if number in self.config.deepstack_visual_indexes:
                level = self.config.deepstack_visual_indexes.index(number)
                maps.append(self.deepstack_merger_list[level](hidden_PW))
        return torch.cat([self.merger(hidden_PW), *maps], dim=-1)

    def _position_embeddings(self, places: PatchPlaces) -> torch.Tensor:
        """Returns float32 [P, hidden_size], interpolated between the four nearest entries of the table."""
        side = int(self.config.num_position_embeddings**0.5)
        (rows_P2, row_weights_P2), (columns_P2, column_weights_P2) = (
            interpolated(places.own_P2[:, axis], places.sizes_P2[:, axis], side) for axis in (0, 1)
        )
        entries_P4 = (rows_P2[:, :, None] * side + columns_P2[:, None]).flatten(1)
        weights_P4 = (row_weights_P2[:, :, None] * column_weights_P2[:, None]).flatten(1)
        return (self.pos_embed(entries_P4) * weights_P4[:, :, None]).sum(1)


@dataclass(frozen=True, slots=True)
class PatchPlaces:
    """Places of all patches in their images, in the order of the patches: merged block by merged block."""

    own_P2: torch.Tensor
    """int64 [P, 2], row and column of each patch."""
    sizes_P2: torch.Tensor
    """int64 [P, 2], numbers of rows and columns of each patch's image."""


def patch_places(grids: Sequence[Grid], merge: int, device: torch.device) -> PatchPlaces:
    """Returns the places of all patches of some images.

    Args:
        grids: patch grid of each image, with one frame.
        merge: patches along one side of a merged block.
        device: device of the result.
    """
    own, sizes = [], []
    for _, rows, columns in grids:
        both = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        block = (rows // merge, merge, columns // merge, merge)
        own.append(torch.stack([one.reshape(block).transpose(1, 2).flatten() for one in both], dim=-1))
        sizes.append(torch.tensor([rows, columns], device=device).expand(rows * columns, 2))
    return PatchPlaces(torch.cat(own), torch.cat(sizes))


def interpolated(places_P: torch.Tensor, sizes_P: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the two nearest entries of a table on one axis, int64 [P, 2], and their weights, float32 [P, 2].

    The first and the last place fall on the first and the last entry.

    Args:
        places_P: int64 [P], places on the axis.
        sizes_P: int64 [P], number of places on it.
        side: number of entries of the table.
    """
    source_P = places_P.float() * (side - 1) / torch.clamp(sizes_P - 1, min=1)
    floor_P = torch.floor(source_P)
    offsets_2 = torch.arange(2, device=places_P.device)
    distance_P2 = (source_P[:, None] - floor_P[:, None] - offsets_2).abs()
    return (floor_P.long()[:, None] + offsets_2).clamp(0, side - 1), (1 - distance_P2).clamp(min=0)


def rotary_angles(places_P2: torch.Tensor, config: VisionConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines and sines of the rotary angles, float32 [P, head_dim] each: rows, columns, and both again."""
    spatial = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, spatial, 2, dtype=torch.float) / spatial))
    angles_P = (places_P2[..., None].float() * frequencies.to(places_P2.device)).flatten(1)
    return tuple(torch.cat([one, one], dim=-1) for one in (angles_P.cos(), angles_P.sin()))  # type: ignore[return-value]


def rotated(values_PHd: torch.Tensor, cosines_Pd: torch.Tensor, sines_Pd: torch.Tensor) -> torch.Tensor:
    """Returns queries or keys [P, heads, head_dim], rotated in float32."""
    values = values_PHd.float()
    first, second = values.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (values * cosines_Pd[:, None] + turned * sines_Pd[:, None]).to(values_PHd.dtype)
