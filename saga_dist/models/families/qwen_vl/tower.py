"""The vision tower that the Qwen-VL generations share; images or windows of one length are attended as one batch."""

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
from saga_dist.models.families.preprocessing import check_images, value_table
from saga_dist.models.weights import build_empty


class LinearPatchEmbed(nn.Module):
    """Mixed into a family's patch embedding: the matrix product that it is, as kernel and stride are one patch."""

    proj: nn.Conv3d

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns embedded patches [patches, width]; pixels are [patches, channels * frames * patch * patch]."""
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.reshape(-1, weight.shape[1]).to(weight.dtype), weight, self.proj.bias)


class EqualLengthAttention(nn.Module):
    """Mixed into a family's attention: one batch where all stretches (images or windows) have the same length.

    The original runs stretch by stretch; with 64 small images that is most of the tower's time. Stretches of different
    lengths take the original way.
    """

    num_heads: int
    head_dim: int
    scaling: float
    qkv: nn.Linear
    proj: nn.Linear

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns attended patches [sum of patches, width]; arguments as in the original."""
        lengths = cu_seqlens.diff()
        if position_embeddings is None or bool((lengths != lengths[0]).any()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        num_stretches, num_patches = len(lengths), int(lengths[0])
        heads = (self.num_heads, self.head_dim)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, *heads)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (
            part.reshape(num_stretches, num_patches, *heads).transpose(1, 2) for part in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(attended.transpose(1, 2).reshape(num_stretches * num_patches, -1))


class QwenVLTower(ModelTower):
    """The vision tower of one Qwen-VL generation, which names its classes in transformers.

    Raises:
        ModelError: the preprocessing is for other patches than the model.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    rotary_class: ClassVar[type[nn.Module]]
    patch_embed_class: ClassVar[type[LinearPatchEmbed]]
    attention_class: ClassVar[type[EqualLengthAttention]]

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
        self._table_CV = value_table(self._processor)

    @staticmethod
    def layout_of(config: PreTrainedConfig) -> TokenLayout:
        """Returns the token layout of a Qwen-VL vision configuration; only Qwen3-VL's has DeepStack levels."""
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
        # The parts keep their weights and names; only the way they compute changes.
        model.patch_embed.__class__ = self.patch_embed_class
        for block in model.blocks:
            block.attn.__class__ = self.attention_class
        return model

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns pixels of uint8 [height, width, 3] images, rescaled and normalised, never resized."""
        check_images(images, self.layout.pixels_per_token)
        # The checkpoint's own smallest size (65,536 pixels in released ones) would silently enlarge a 224-pixel image.
        # So nothing is resized; patches are cut and the processor's values looked up here, bit by bit the same.
        patch = self.layout.patch_size
        grids = tuple((1, image.shape[0] // patch, image.shape[1] // patch) for image in images)
        counts = [rows * columns for _, rows, columns in grids]
        values_PX = torch.empty(sum(counts), 3 * self._processor.temporal_patch_size * patch**2)
        for image, part_PX in zip(images, values_PX.split(counts), strict=True):
            self._cut(image, part_PX.numpy())
        return PixelBatch(
            pixel_values=values_PX,
            grids=grids,
            lengths=tuple(self.layout.num_tokens(grid) for grid in grids),
        )

    def _cut(self, image_HWC: np.ndarray, out_PX: np.ndarray) -> None:
        """Writes an image's patches in the processor's order: merged blocks; channels, frames, rows of each."""
        patch, merge = self.layout.patch_size, self.layout.merge_size
        rows, columns = (side // (merge * patch) for side in image_HWC.shape[:2])
        blocks = out_PX.reshape(rows, columns, merge, merge, 3, -1, patch, patch)
        for channel, table_V in enumerate(self._table_CV):
            plane_HW = table_V.take(image_HWC[..., channel], mode="clip")  # of 256 values none is clipped; it is faster
            cut = plane_HW.reshape(rows, merge, patch, columns, merge, patch).transpose(0, 3, 1, 4, 2, 5)
            blocks[:, :, :, :, channel] = cut[:, :, :, :, None]

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D]: merged tokens, then DeepStack maps by layer, if any."""
        weight = self.model.patch_embed.proj.weight
        grids_I3 = torch.tensor(batch.grids, dtype=torch.int64, device=weight.device)
        output = self.model(batch.pixel_values.to(weight.device, weight.dtype), grid_thw=grids_I3, return_dict=True)
        levels = output.deepstack_features if self.layout.num_deepstack else ()
        return torch.cat([output.pooler_output, *levels], dim=-1)

    def describe(self) -> dict[str, Any]:
        """Returns the vision configuration as JSON values."""
        return self.model.config.to_dict()
