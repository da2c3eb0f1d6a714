"""The encoder as one plain graph: uint8 images in, embeddings out, every size but the batch fixed.

What a tower works out anew for each batch (patch order, positions, rotation) is the same for all images of one size.
Here it is worked out once and becomes a constant: the exported graph has no Python in it and no loop over images.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from saga_dist.errors import ModelError
from saga_dist.models.encoder import Encoder
from saga_dist.models.families.base import VisionTower
from saga_dist.models.families.qwen3_vl_tower import Qwen3VLTower


class PixelMap(nn.Module):
    """A family's preprocessing, found out from what it does to images: which pixel goes where, scaled by how much.

    Args:
        tower: whose preprocessing rescales and rearranges pixels, each by itself.
        size: side of the square, pixels.

    Raises:
        ModelError: the preprocessing does something else as well.
    """

    offset_PK: torch.Tensor
    scale_PK: torch.Tensor
    number_PK: torch.Tensor

    def __init__(self, tower: VisionTower, size: int) -> None:
        super().__init__()
        black, white = (_preprocessed(tower, np.full((size, size, 3), value, np.uint8)) for value in (0, 255))
        self.register_buffer("offset_PK", black)
        self.register_buffer("scale_PK", (white - black) / 255)
        # The number of each value in the image, written in base 256: one image for each digit.
        numbers = np.arange(size * size * 3).reshape(size, size, 3)
        found_PK = torch.zeros(black.shape, dtype=torch.int64)
        for power in range(3):
            digit_PK = (_preprocessed(tower, (numbers >> (8 * power) & 255).astype(np.uint8)) - black) / self.scale_PK
            found_PK += digit_PK.round().long() << (8 * power)
        self.register_buffer("number_PK", found_PK)
        trial = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        if not torch.allclose(self(torch.from_numpy(trial)[None])[0], _preprocessed(tower, trial), atol=1e-5):
            raise ModelError(
                "the preprocessing is more than scaling and rearranging pixels",
                where=tower.family,
                expected="a family whose preprocessing can be put into a graph",
                fix="export with --format hf",
            )

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Returns pixel values [B, P, K] float32 of uint8 images."""
        values_BM = images_BHWC.flatten(1).float()
        return values_BM[:, self.number_PK] * self.scale_PK + self.offset_PK


class Qwen3VLGraph(nn.Module):
    """Tower and pooler of a Qwen3-VL encoder for images of its own size, in float32; the DeepStack maps are left out.

    Args:
        encoder: is copied.
    """

    position_PW: torch.Tensor
    cos_Pd: torch.Tensor
    sin_Pd: torch.Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        encoder = copy.deepcopy(encoder).cpu().float().eval()
        tower = encoder.tower
        if not isinstance(tower, Qwen3VLTower):
            raise ModelError(
                f"no graph for family {tower.family!r}", expected="qwen3_vl", fix="export with --format hf"
            )
        self.pixels = PixelMap(tower, encoder.image_size)
        position_PW, cos_Pd, sin_Pd = _constants(tower, encoder.image_size)
        self.register_buffer("position_PW", position_PW)
        self.register_buffer("cos_Pd", cos_Pd)
        self.register_buffer("sin_Pd", sin_Pd)
        self.projection = tower.model.patch_embed.proj
        self.blocks, self.merger, self.pooler = tower.model.blocks, tower.model.merger, encoder.pooler
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, E] float32, l2-normalised, of images [B, S, S, 3] uint8."""
        patches_BPK = self.pixels(images)
        hidden_BPW = F.linear(patches_BPK, self.projection.weight.flatten(1), self.projection.bias) + self.position_PW
        for block in self.blocks:
            hidden_BPW = hidden_BPW + self._attend(block.attn, block.norm1(hidden_BPW))
            hidden_BPW = hidden_BPW + block.mlp(block.norm2(hidden_BPW))
        tokens_ID = self.merger(hidden_BPW.flatten(0, 1))
        return self.pooler(tokens_ID.unflatten(0, (images.shape[0], -1))).embeddings_IE

    def _attend(self, attention: Any, normed_BPW: torch.Tensor) -> torch.Tensor:
        heads = (3, attention.num_heads, attention.head_dim)
        query, key, value = attention.qkv(normed_BPW).unflatten(-1, heads).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, self.cos_Pd, self.sin_Pd)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
        return attention.proj(attended.transpose(1, 2).flatten(2))


def _preprocessed(tower: VisionTower, image_HWC: np.ndarray) -> torch.Tensor:
    return tower.preprocess([image_HWC]).pixel_values


@torch.no_grad()
def _constants(tower: Qwen3VLTower, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Position embeddings [P, W], cosines and sines [P, d] of an image, overheard from the tower itself."""
    heard: list[torch.Tensor] = []

    def overhear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_PW = args[0] if args else kwargs["hidden_states"]
        heard.extend((hidden_PW.clone(), *kwargs["position_embeddings"]))

    hooks = [
        # With patches of nothing, what reaches the first block are the position embeddings.
        tower.model.patch_embed.register_forward_hook(lambda module, args, output: torch.zeros_like(output)),
        tower.model.blocks[0].register_forward_pre_hook(overhear, with_kwargs=True),
    ]
    try:
        tower(tower.preprocess([np.zeros((size, size, 3), np.uint8)]))
    finally:
        for hook in hooks:
            hook.remove()
    position_PW, cos_Pd, sin_Pd = heard
    return position_PW, cos_Pd, sin_Pd
