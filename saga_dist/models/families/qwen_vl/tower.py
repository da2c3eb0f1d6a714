"""Base of the vision towers of the Qwen-VL generations; attention of equal-length sequences runs as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from saga_dist.errors import ModelError
from saga_dist.models.families.base import PixelBatch, TokenLayout
from saga_dist.models.families.checkpoint_family import ModelTower
from saga_dist.models.families.preprocessing import value_table
from saga_dist.models.families.qwen_vl.patches import PatchCutter
from saga_dist.models.train_checks import check_last_blocks
from saga_dist.models.weights import build_empty


class LinearPatchEmbed(nn.Module):
    """Mixin for a family's patch embedding that computes the convolution as a matrix product.

    The two are equal, because kernel and stride both are one patch.
    """

    proj: nn.Conv3d
    """Convolution of the original module."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns embedded patches, [patches, width].

        Args:
            hidden_states: pixels, [patches, channels * frames * patch * patch].
        """
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.reshape(-1, weight.shape[1]).to(weight.dtype), weight, self.proj.bias)


class EqualLengthAttention(nn.Module):
    """Mixin for a family's vision attention that runs sequences (images or windows) of equal length as one batch.

    The original module runs one sequence after the other, which takes most of the tower's time for 64 small images. For
    sequences of different lengths the original module is used.
    """

    num_heads: int
    """Number of heads."""
    head_dim: int
    """Width of one head."""
    scaling: float
    """Factor of the query-key products."""
    qkv: nn.Linear
    """Projection of hidden states to queries, keys and values."""
    proj: nn.Linear
    """Output projection."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns the attention output, [sum of patches, width].

        Args:
            hidden_states: [sum of patches, width].
            cu_seqlens: int [sequences + 1], cumulative lengths of the sequences, from 0.
            position_embeddings: cosines and sines of the rotation; None uses the original module.
            kwargs: further arguments of the original module.
        """
        lengths = cu_seqlens.diff()
        if position_embeddings is None or bool((lengths != lengths[0]).any()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        num_sequences, num_patches = len(lengths), int(lengths[0])
        heads = (self.num_heads, self.head_dim)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, *heads)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (
            part.reshape(num_sequences, num_patches, *heads).transpose(1, 2) for part in (query, key, value)
        )
        output = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(output.transpose(1, 2).reshape(num_sequences * num_patches, -1))


class QwenVLTower(ModelTower):
    """Vision tower of a Qwen-VL generation; a subclass sets the classes of its modules.

    Raises:
        ModelError: the preprocessing has another patch size or merge size than the model.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    """Class of the tower in transformers."""
    rotary_class: ClassVar[type[nn.Module]]
    """Class of the tower's rotary embedding, whose buffers are computed, not loaded."""
    patch_embed_class: ClassVar[type[LinearPatchEmbed]]
    """Class that replaces the class of the patch embedding."""
    attention_class: ClassVar[type[EqualLengthAttention]]
    """Class that replaces the class of every layer's attention."""

    def __init__(
        self, config: PreTrainedConfig, preprocessing: Path, *, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        super().__init__(config, preprocessing, dtype=dtype, device=device)
        layout = self.layout
        if (self._processor.patch_size, self._processor.merge_size) != (layout.patch_size, layout.merge_size):
            raise ModelError(
                f"patch_size {self._processor.patch_size}, merge_size {self._processor.merge_size}",
                where=str(preprocessing),
                expected=f"{layout.patch_size} and {layout.merge_size} as in config.json",
            )
        frames = self._processor.temporal_patch_size
        self._patches = PatchCutter(layout, frames, value_table(self._processor))

    @staticmethod
    def layout_of(config: PreTrainedConfig) -> TokenLayout:
        """Returns the token layout of a Qwen-VL vision configuration; only Qwen3-VL has DeepStack levels."""
        levels = config.deepstack_visual_indexes if config.model_type.startswith("qwen3") else ()
        return TokenLayout(
            width=config.out_hidden_size,
            num_deepstack=len(levels),
            patch_size=config.patch_size,
            merge_size=config.spatial_merge_size,
        )

    def _empty_model(
        self, config: PreTrainedConfig, *, dtype: torch.dtype, device: str | torch.device
    ) -> PreTrainedModel:
        model = build_empty(
            lambda: self.model_class._from_config(config, attn_implementation="sdpa", dtype=dtype), device=device
        )
        model.rotary_pos_emb = self.rotary_class(config).to(device)
        # Weights and names of the modules do not change, only their forward methods.
        model.patch_embed.__class__ = self.patch_embed_class
        for block in model.blocks:
            block.attn.__class__ = self.attention_class
        return model

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns the pixels of uint8 [height, width, 3] images, rescaled and normalised, not resized.

        Raises:
            DataError: an image is not uint8 RGB, or a side is no multiple of ``layout.pixels_per_token``.
        """
        return self._patches.preprocess(images)

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D]: merged tokens, then the DeepStack maps in the order of layers."""
        weight = self.model.patch_embed.proj.weight
        grids_I3 = torch.tensor(batch.grids, dtype=torch.int64, device=weight.device)
        output = self.model(batch.pixel_values.to(weight.device, weight.dtype), grid_thw=grids_I3, return_dict=True)
        levels = output.deepstack_features if self.layout.num_deepstack else ()
        return torch.cat([output.pooler_output, *levels], dim=-1)

    def last_blocks(self, count: int) -> list[nn.Module]:
        """Returns the last ``count`` blocks, the merger, and the DeepStack mergers of these blocks.

        Raises:
            ModelError: the tower has fewer blocks.
        """
        blocks = self.model.blocks
        check_last_blocks(count, len(blocks), where=self.family)
        first = len(blocks) - count
        levels: list[tuple[int, nn.Module]] = []
        if self.layout.num_deepstack:
            levels = list(zip(self.model.deepstack_visual_indexes, self.model.deepstack_merger_list, strict=True))
        return [*blocks[first:], self.model.merger, *(merger for block, merger in levels if block >= first)]

    def describe(self) -> dict[str, Any]:
        """Returns the vision configuration as JSON values."""
        return self.model.config.to_dict()
