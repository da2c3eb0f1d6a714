"""The encoder as one traceable graph: uint8 images in, embeddings out; all sizes but the batch size are fixed.

A tower computes patch order, windows, position embeddings and rotary angles anew for each batch, although they are the
same for all images of one size. Here they are recorded once from the tower itself with hooks and become constants, so
the exported graph has no Python code and no loop over images.
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
from saga_dist.models.families.qwen3_vl.plain_tower import PlainQwen3VLTower
from saga_dist.models.families.qwen_vl.tower import QwenVLTower


def build_graph(encoder: Encoder) -> nn.Module:
    """Returns tower and pooler as one float32 module for images of the encoder's own size; the encoder is copied.

    The module's ``forward`` takes images [B, S, S, 3] uint8 and returns embeddings [B, E] float32, l2-normalised.

    Raises:
        ModelError: the family is not supported, or its preprocessing does more than scale and rearrange pixels.
    """
    encoder = copy.deepcopy(encoder).cpu().float().eval()
    if isinstance(encoder.tower, QwenVLTower | PlainQwen3VLTower):
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
    """A family's preprocessing as a gather and an affine map, derived from its outputs on test images.

    Args:
        tower: tower whose preprocessing only scales, shifts and rearranges single pixel values.
        size: side S of the square images in pixels.

    Raises:
        ModelError: the preprocessing does something else as well.
    """

    offset: torch.Tensor
    """float32 output for a black image, in the shape of one image's input to the tower: [P, K] patches or [3, S, S]."""
    scale: torch.Tensor
    """float32, same shape: change of the output per unit of the uint8 input."""
    number: torch.Tensor
    """int64, same shape: index of the input value among the image's S * S * 3 flattened values."""

    def __init__(self, tower: VisionTower, size: int) -> None:
        super().__init__()
        black, white = (_preprocessed(tower, np.full((size, size, 3), value, np.uint8)) for value in (0, 255))
        self.register_buffer("offset", black)
        self.register_buffer("scale", (white - black) / 255)
        # Each input value gets its flat index, written in base 256 as three images, one per digit.
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
        """Returns float32 pixel values [B, P, K] or [B, 3, S, S] of images [B, S, S, 3] uint8."""
        values_BM = images_BHWC.flatten(1).float()
        return values_BM[:, self.number] * self.scale + self.offset

    def reorder(self, rows_P: torch.Tensor) -> None:
        """Permutes the patches of the output.

        Args:
            rows_P: int64 [P], the present index of each patch of the new order.
        """
        self.offset, self.scale, self.number = self.offset[rows_P], self.scale[rows_P], self.number[rows_P]


class QwenVLGraph(nn.Module):
    """A Qwen-VL tower and its pooler, without the DeepStack maps; window attention is a mask.

    Patches stay in the order in which the blocks process them, window by window, because the pooler does not depend on
    the order of tokens.

    Args:
        tower: tower in float32, whose modules become part of the graph.
        pooler: pooler in float32, which becomes part of the graph.
        size: side S of the images in pixels.
    """

    position_PW: torch.Tensor
    """float32 [P, W], position embedding of each patch; zero in families with rotary positions only."""
    cos_Pd: torch.Tensor
    """float32 [P, d], cosines of the rotary position angles."""
    sin_Pd: torch.Tensor
    """float32 [P, d], sines of the rotary position angles."""
    window_PP: torch.Tensor
    """bool [P, P], True where both patches are in the same window; used by the windowed blocks only."""

    def __init__(self, tower: QwenVLTower | PlainQwen3VLTower, pooler: nn.Module, size: int) -> None:
        super().__init__()
        constants = _record_constants(tower, size)
        self.pixels = PixelMap(tower, size)
        self.pixels.reorder(constants.order_P)
        self.register_buffer("position_PW", constants.position_PW)
        self.register_buffer("cos_Pd", constants.cos_Pd)
        self.register_buffer("sin_Pd", constants.sin_Pd)
        self.register_buffer("window_PP", constants.window_PP)
        self.windowed = constants.windowed
        """One bool per block: True for window attention."""
        self.projection = tower.model.patch_embed.proj
        self.blocks, self.merger, self.pooler = tower.model.blocks, tower.model.merger, pooler

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 embeddings [B, E] of images [B, S, S, 3] uint8."""
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
        tower: tower in float32, whose modules become part of the graph.
        pooler: pooler in float32, which becomes part of the graph.
        size: side S of the images in pixels.
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
            # With a table of exactly this size, the model's forward does not interpolate.
            embeddings.position_embeddings = nn.Parameter(table.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 embeddings [B, E] of images [B, S, S, 3] uint8."""
        tokens_BND = self.model.get_image_features(self.pixels(images)).pooler_output
        return self.pooler(tokens_BND).embeddings_IE


@dataclass(frozen=True, slots=True)
class _TowerConstants:
    """Tensors that a Qwen-VL tower computes from the image size alone."""

    order_P: torch.Tensor
    """int64 [P], indices of the patches in the order in which the blocks process them."""
    position_PW: torch.Tensor
    """float32 [P, W], position embeddings in that order; zero in families with rotary positions only."""
    cos_Pd: torch.Tensor
    """float32 [P, d], cosines of the rotary position angles in that order."""
    sin_Pd: torch.Tensor
    """float32 [P, d], sines of the rotary position angles in that order."""
    window_PP: torch.Tensor
    """bool [P, P], True where a patch attends to another one in the windowed blocks."""
    windowed: tuple[bool, ...]
    """One bool per block: True for window attention."""


def _preprocessed(tower: VisionTower, image_HWC: np.ndarray) -> torch.Tensor:
    """Returns one preprocessed image as the tower takes it, without the image axis: [P, K] or [3, S, S]."""
    values = tower.preprocess([image_HWC]).pixel_values
    return values[0] if values.ndim == 4 else values


@torch.no_grad()
def _record_constants(tower: QwenVLTower | PlainQwen3VLTower, size: int) -> _TowerConstants:
    """Returns the tower's constants for images of one size, recorded with hooks during two forward passes.

    The first pass replaces the patch embeddings by zeros, so that the first block receives the position embeddings. The
    second pass replaces them by the patch indices, so that the difference of the two is the order of the patches.
    """
    hidden: list[torch.Tensor] = []
    rotation: list[torch.Tensor] = []
    boundaries: list[torch.Tensor] = []

    def replace_embeddings(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # len(hidden) is 0 in the first pass and 1 in the second.
        return torch.arange(len(output), dtype=output.dtype)[:, None].expand_as(output) * len(hidden)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is tower.model.blocks[0]:
            hidden.append((args[0] if args else kwargs["hidden_states"]).clone())
            rotation[:] = kwargs["position_embeddings"]
        boundaries.append(kwargs["cu_seqlens"])

    hooks = [tower.model.patch_embed.register_forward_hook(replace_embeddings)]
    hooks += [block.register_forward_pre_hook(record, with_kwargs=True) for block in tower.model.blocks]
    try:
        for _ in range(2):
            tower(tower.preprocess([np.zeros((size, size, 3), np.uint8)]))
    finally:
        for hook in hooks:
            hook.remove()
    masks = [_same_window(ends) for ends in boundaries[-len(tower.model.blocks) :]]
    windowed = tuple(not bool(mask_PP.all()) for mask_PP in masks)
    return _TowerConstants(
        order_P=(hidden[1] - hidden[0])[:, 0].round().long(),
        position_PW=hidden[0],
        cos_Pd=rotation[0],
        sin_Pd=rotation[1],
        window_PP=masks[windowed.index(True)] if any(windowed) else masks[0],
        windowed=windowed,
    )


def _same_window(boundaries: torch.Tensor) -> torch.Tensor:
    """Returns bool [P, P], True where both patches are in the same window.

    Args:
        boundaries: integer [windows + 1], cumulative sequence lengths: 0 and the end of each window.
    """
    window_P = torch.repeat_interleave(torch.arange(len(boundaries) - 1), boundaries.diff())
    return window_P[:, None] == window_P
