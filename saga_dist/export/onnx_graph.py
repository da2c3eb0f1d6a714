"""The encoder as one plain graph: uint8 images in, embeddings out, every size but the batch fixed.

What a tower works out anew for each batch (patch order, windows, positions, rotation) is the same for all images of one
size. Here it is worked out once, overheard from the tower itself, and becomes a constant: the exported graph has no
Python in it and no loop over images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from saga_dist.errors import ModelError
from saga_dist.models.encoder import Encoder
from saga_dist.models.families.base import VisionTower
from saga_dist.models.families.internvl.tower import InternVLTower
from saga_dist.models.families.qwen_vl.tower import QwenVLTower


def build_graph(encoder: Encoder) -> nn.Module:
    """Returns tower and pooler as one graph in float32, for images of the encoder's own size; the encoder is copied.

    Its ``forward`` takes images [B, S, S, 3] uint8 and returns embeddings [B, E] float32, l2-normalised.

    Raises:
        ModelError: this family cannot be put into a graph.
    """
    encoder = copy.deepcopy(encoder).cpu().float().eval()
    if isinstance(encoder.tower, QwenVLTower):
        graph: nn.Module = QwenVLGraph(encoder.tower, encoder.pooler, encoder.image_size)
    elif isinstance(encoder.tower, InternVLTower):
        graph = InternVLGraph(encoder.tower, encoder.pooler, encoder.image_size)
    else:
        raise ModelError(
            f"no graph for family {encoder.tower.family!r}",
            where="--format onnx",
            expected="qwen3_vl, qwen2_5_vl or internvl",
            fix="export with --format hf",
        )
    return graph.requires_grad_(False).eval()


class PixelMap(nn.Module):
    """A family's preprocessing, found out from what it does to images: which pixel goes where, scaled by how much.

    Args:
        tower: whose preprocessing rescales and rearranges pixels, each by itself.
        size: side of the square, pixels.

    Raises:
        ModelError: the preprocessing does something else as well.
    """

    offset: torch.Tensor
    """What black gives, in the shape that the tower takes one image: [P, K] patches, or [3, S, S]; the others alike."""
    scale: torch.Tensor
    number: torch.Tensor
    """int64, which of the image's S * S * 3 values goes there."""

    def __init__(self, tower: VisionTower, size: int) -> None:
        super().__init__()
        black, white = (_preprocessed(tower, np.full((size, size, 3), value, np.uint8)) for value in (0, 255))
        self.register_buffer("offset", black)
        self.register_buffer("scale", (white - black) / 255)
        # The number of each value in the image, written in base 256: one image for each digit.
        numbers = np.arange(size * size * 3).reshape(size, size, 3)
        found = torch.zeros(black.shape, dtype=torch.int64)
        for power in range(3):
            digit = (_preprocessed(tower, (numbers >> (8 * power) & 255).astype(np.uint8)) - black) / self.scale
            found += digit.round().long() << (8 * power)
        self.register_buffer("number", found)
        trial = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        if not torch.allclose(self(torch.from_numpy(trial)[None])[0], _preprocessed(tower, trial), atol=1e-5):
            raise ModelError(
                "the preprocessing is more than scaling and rearranging pixels",
                where=tower.family,
                expected="a family whose preprocessing can be put into a graph",
                fix="export with --format hf",
            )

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Returns float32 pixel values [B, ...] of uint8 images."""
        values_BM = images_BHWC.flatten(1).float()
        return values_BM[:, self.number] * self.scale + self.offset

    def reorder(self, rows_P: torch.Tensor) -> None:
        """Gives the patches in another order from now on."""
        self.offset, self.scale, self.number = self.offset[rows_P], self.scale[rows_P], self.number[rows_P]


class QwenVLGraph(nn.Module):
    """A Qwen-VL tower and its pooler; DeepStack maps are left out, windows are a mask.

    Patches stay in the order in which the blocks see them, windows together: to the pooler a token's place is nothing.

    Args:
        tower: in float32; becomes part of the graph.
        pooler: likewise.
        size: side of the images, pixels.
    """

    position_PW: torch.Tensor
    cos_Pd: torch.Tensor
    sin_Pd: torch.Tensor
    window_PP: torch.Tensor

    def __init__(self, tower: QwenVLTower, pooler: nn.Module, size: int) -> None:
        super().__init__()
        heard = _overhear(tower, size)
        self.pixels = PixelMap(tower, size)
        self.pixels.reorder(heard.order_P)
        self.register_buffer("position_PW", heard.position_PW)
        self.register_buffer("cos_Pd", heard.cos_Pd)
        self.register_buffer("sin_Pd", heard.sin_Pd)
        self.register_buffer("window_PP", heard.window_PP)
        self.windowed = heard.windowed
        self.projection = tower.model.patch_embed.proj
        self.blocks, self.merger, self.pooler = tower.model.blocks, tower.model.merger, pooler

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, E] of images [B, S, S, 3] uint8."""
        patches_BPK = self.pixels(images)
        hidden_BPW = F.linear(patches_BPK, self.projection.weight.flatten(1), self.projection.bias) + self.position_PW
        for block, windowed in zip(self.blocks, self.windowed, strict=True):
            mask_PP = self.window_PP if windowed else None
            hidden_BPW = hidden_BPW + self._attend(block.attn, block.norm1(hidden_BPW), mask_PP)
            hidden_BPW = hidden_BPW + block.mlp(block.norm2(hidden_BPW))
        tokens_ID = self.merger(hidden_BPW.flatten(0, 1))
        return self.pooler(tokens_ID.unflatten(0, (images.shape[0], -1))).embeddings_IE

    def _attend(self, attention: Any, normed_BPW: torch.Tensor, mask_PP: torch.Tensor | None) -> torch.Tensor:
        heads = (3, attention.num_heads, attention.head_dim)
        query, key, value = attention.qkv(normed_BPW).unflatten(-1, heads).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, self.cos_Pd, self.sin_Pd)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_PP, scale=attention.scaling)
        return attention.proj(attended.transpose(1, 2).flatten(2))


class InternVLGraph(nn.Module):
    """InternViT, pixel shuffle, projector and pooler; the position table is interpolated beforehand.

    Args:
        tower: in float32; becomes part of the graph.
        pooler: likewise.
        size: side of the images, pixels.
    """

    def __init__(self, tower: InternVLTower, pooler: nn.Module, size: int) -> None:
        super().__init__()
        self.pixels = PixelMap(tower, size)
        self.model, self.pooler = tower.model, pooler
        embeddings = self.model.vision_tower.embeddings
        if embeddings.position_embeddings is not None:
            places = (size // tower.layout.patch_size) ** 2 + 1
            with torch.no_grad():
                table = embeddings.interpolate_pos_encoding(
                    torch.zeros(1, places, embeddings.cls_token.shape[-1]), size, size
                )
            # A table of the size itself is taken as it is.
            embeddings.position_embeddings = nn.Parameter(table.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, E] of images [B, S, S, 3] uint8."""
        tokens_BND = self.model.get_image_features(self.pixels(images)).pooler_output
        return self.pooler(tokens_BND).embeddings_IE


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a Qwen-VL tower works out for an image of one size."""

    order_P: torch.Tensor
    """int64, the patches in the order in which the blocks see them."""
    position_PW: torch.Tensor
    """Position embeddings; zero in families that only rotate."""
    cos_Pd: torch.Tensor
    sin_Pd: torch.Tensor
    window_PP: torch.Tensor
    """bool, True where a patch may look in the windowed blocks."""
    windowed: tuple[bool, ...]
    """Of each block."""


def _preprocessed(tower: VisionTower, image_HWC: np.ndarray) -> torch.Tensor:
    """One image as the tower takes it, without an axis for images."""
    values = tower.preprocess([image_HWC]).pixel_values
    return values[0] if values.ndim == 4 else values


@torch.no_grad()
def _overhear(tower: QwenVLTower, size: int) -> _Heard:
    """Sends an image through the tower whose embedded patches are nothing, then one whose patches are their numbers."""
    hidden: list[torch.Tensor] = []
    rotation: list[torch.Tensor] = []
    stretches: list[torch.Tensor] = []

    def number(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(output), dtype=output.dtype)[:, None].expand_as(output) * len(hidden)

    def overhear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is tower.model.blocks[0]:
            hidden.append((args[0] if args else kwargs["hidden_states"]).clone())
            rotation[:] = kwargs["position_embeddings"]
        stretches.append(kwargs["cu_seqlens"])

    hooks = [tower.model.patch_embed.register_forward_hook(number)]
    hooks += [block.register_forward_pre_hook(overhear, with_kwargs=True) for block in tower.model.blocks]
    try:
        for _ in range(2):
            tower(tower.preprocess([np.zeros((size, size, 3), np.uint8)]))
    finally:
        for hook in hooks:
            hook.remove()
    masks = [_same_stretch(ends) for ends in stretches[-len(tower.model.blocks) :]]
    windowed = tuple(not bool(mask_PP.all()) for mask_PP in masks)
    return _Heard(
        order_P=(hidden[1] - hidden[0])[:, 0].round().long(),
        position_PW=hidden[0],
        cos_Pd=rotation[0],
        sin_Pd=rotation[1],
        window_PP=masks[windowed.index(True)] if any(windowed) else masks[0],
        windowed=windowed,
    )


def _same_stretch(ends: torch.Tensor) -> torch.Tensor:
    """bool [P, P]: both patches are in one stretch of those that end (and, but for the first, begin) at ``ends``."""
    stretch_P = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())
    return stretch_P[:, None] == stretch_P
