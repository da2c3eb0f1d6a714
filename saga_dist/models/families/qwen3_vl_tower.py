"""The vision tower of Qwen3-VL, with all images of one size attended at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionRotaryEmbedding,
    apply_rotary_pos_emb_vision,
)

from saga_dist.errors import DataError, ModelError
from saga_dist.models.families.base import PixelBatch, TokenLayout, VisionTower
from saga_dist.models.weights import build_empty

if TYPE_CHECKING:
    from transformers.models.qwen3_vl import Qwen3VLVisionConfig


class LinearPatchEmbed(Qwen3VLVisionPatchEmbed):
    """The family's patch embedding as the matrix product it is: kernel and stride of the convolution are one patch."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns embedded patches [patches, width]; pixels are [patches, channels * frames * patch * patch]."""
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.reshape(-1, weight.shape[1]).to(weight.dtype), weight, self.proj.bias)


class EqualSizeAttention(Qwen3VLVisionAttention):
    """The family's attention, as one batch where all images have the same number of patches.

    The original runs image by image; with 64 small images that is most of the tower's time. Images of different sizes
    take the original way.
    """

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
        num_images, num_patches = len(lengths), int(lengths[0])
        heads = (self.num_heads, self.head_dim)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, *heads)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (
            part.reshape(num_images, num_patches, *heads).transpose(1, 2) for part in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.proj(attended.transpose(1, 2).reshape(num_images * num_patches, -1))


class Qwen3VLTower(VisionTower):
    """Vision tower with merger and DeepStack mergers.

    Args:
        config: vision part of the checkpoint's configuration.
        preprocessing: path of ``preprocessor_config.json``.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    family: ClassVar[str] = "qwen3_vl"

    def __init__(
        self, config: Qwen3VLVisionConfig, preprocessing: Path, *, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        super().__init__()
        self.layout = vision_layout(config)
        self.model = build_empty(
            lambda: Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa", dtype=dtype), device=device
        )
        self.model.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(config).to(device)
        # The parts keep their weights and names; only the way they compute changes.
        self.model.patch_embed.__class__ = LinearPatchEmbed
        for block in self.model.blocks:
            block.attn.__class__ = EqualSizeAttention
        self._processor = _load_processor(preprocessing, self.layout)

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns pixels of uint8 [height, width, 3] images, rescaled and normalised, never resized."""
        for index, image in enumerate(images):
            _check_image(image, index, self.layout.pixels_per_token)
        # The checkpoint's own smallest size (65,536 pixels in released ones) would silently enlarge a 224-pixel image.
        pixels = self._processor(
            images=list(images), do_resize=False, return_tensors="pt", input_data_format="channels_last"
        )
        grids = tuple((int(frames), int(rows), int(columns)) for frames, rows, columns in pixels["image_grid_thw"])
        return PixelBatch(
            pixel_values=pixels["pixel_values"].float(),
            grids=grids,
            lengths=tuple(self.layout.num_tokens(grid) for grid in grids),
        )

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D]: merged tokens, then DeepStack maps by layer."""
        weight = self.model.patch_embed.proj.weight
        grids_I3 = torch.tensor(batch.grids, dtype=torch.int64, device=weight.device)
        output = self.model(batch.pixel_values.to(weight.device, weight.dtype), grid_thw=grids_I3, return_dict=True)
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def enable_gradient_checkpointing(self) -> None:
        """Runs the layers again in the backward pass instead of keeping their activations."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def describe(self) -> dict[str, Any]:
        """Returns the vision configuration as JSON values."""
        return self.model.config.to_dict()

    def save_preprocessing(self, folder: Path) -> None:
        """Writes ``preprocessor_config.json``."""
        self._processor.save_pretrained(folder)


def vision_layout(config: Qwen3VLVisionConfig) -> TokenLayout:
    """Returns the token layout of a Qwen3-VL vision configuration."""
    return TokenLayout(
        width=config.out_hidden_size,
        num_deepstack=len(config.deepstack_visual_indexes),
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
    )


def _load_processor(path: Path, layout: TokenLayout) -> Any:
    from transformers import AutoImageProcessor

    try:
        # The PIL backend: the same numbers, and a deployed encoder needs no torchvision.
        processor = AutoImageProcessor.from_pretrained(path.parent, backend="pil", trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the image processor cannot be loaded ({reason})", where=str(path)) from error
    if (processor.patch_size, processor.merge_size) != (layout.patch_size, layout.merge_size):
        raise ModelError(
            f"patch_size {processor.patch_size}, merge_size {processor.merge_size}",
            where=str(path),
            expected=f"{layout.patch_size} and {layout.merge_size} as in config.json",
        )
    return processor


def _check_image(image: np.ndarray, index: int, multiple: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{image.dtype} array of shape {image.shape}", where=f"image {index}", expected="uint8 [height, width, 3]"
        )
    height, width = image.shape[:2]
    if height % multiple or width % multiple or not height or not width:
        raise DataError(
            f"{height} x {width} pixels",
            where=f"image {index}",
            expected=f"sides that are multiples of {multiple} (patch size x merge size)",
            fix="set data.image_size accordingly",
        )
