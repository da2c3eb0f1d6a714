"""Interface of a family of multimodal LLMs: a trainable tower, a frozen language model, and the tokens between them.

    images ──preprocess──► PixelBatch ──VisionTower──► values_NW ──(the wire)──► FrozenBackbone ──► log-probs, attention

On the wire, the columns of ``values_NW`` are the main tokens, then the L DeepStack maps; this is the layout that vLLM
takes as image embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from saga_dist.data.prompts import ChatFormat
from saga_dist.errors import ModelError
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.families.kv_cache import SharedPrefixKVCache
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.weight_digest import weights_digest
from saga_dist.types import EncoderTokens, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Sizes of the encoder tokens of one checkpoint."""

    width: int
    """D, width of the main tokens and of each DeepStack map."""
    num_deepstack: int
    """L, number of DeepStack maps."""
    patch_size: int
    """Side of a patch, in pixels."""
    merge_size: int
    """Number of patches along one side that are merged into one token."""

    @property
    def wire_width(self) -> int:
        """W = (1 + L) * D, width of the tokens on the wire."""
        return (1 + self.num_deepstack) * self.width

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one token covers; image sides must be multiples of it."""
        return self.patch_size * self.merge_size

    def num_tokens(self, grid: Grid) -> int:
        """Returns N, the number of tokens of an image with this patch grid."""
        frames, rows, columns = grid
        return frames * rows * columns // self.merge_size**2

    def main(self, values_NW: torch.Tensor) -> torch.Tensor:
        """Returns the main tokens [N, D], a view."""
        return values_NW[:, : self.width]

    def levels(self, values_NW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the L DeepStack maps, [N, D] each, views."""
        return values_NW.split(self.width, dim=1)[1:]


@dataclass(frozen=True, slots=True)
class PixelBatch:
    """Preprocessed images, ready for a tower."""

    pixel_values: torch.Tensor
    """float32, in the form that the tower takes: [sum of patches, channels * frames * patch * patch] for Qwen's
    families, [I, 3, size, size] for InternVL."""
    grids: tuple[Grid, ...]
    """Patch grid of each image, before merging."""
    lengths: tuple[int, ...]
    """Number of tokens of each image, after merging."""


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """A prompt whose image placeholders are expanded to one position per encoder token."""

    token_ids_S: torch.Tensor
    """[S] int64; the image token at all positions of encoder tokens."""
    images: tuple[slice, ...]
    """Positions of each image's tokens, in 0 .. S - 1."""
    position_ids_RS: torch.Tensor
    """[R, S] int64, rotary positions, one row per rotary axis."""
    next_position: int
    """Rotary position of the first generated token, on every axis."""

    def image_positions(self) -> torch.Tensor:
        """Returns [N] int64: the positions of all encoder tokens, in wire order."""
        return torch.cat([torch.arange(image.start, image.stop) for image in self.images])


class VisionTower(nn.Module, ABC):
    """The trainable vision encoder f_theta, which maps images to encoder tokens."""

    family: ClassVar[str]
    """Family whose ``rebuild_tower`` builds this tower from a saved encoder: a built-in name or
    ``package.module:object``."""
    layout: TokenLayout
    """Sizes of the encoder tokens."""

    @abstractmethod
    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns the pixels of uint8 [height, width, 3] images, not resized.

        Raises:
            DataError: an image is not uint8 RGB, or a side is not a multiple of ``layout.pixels_per_token``.
        """

    @abstractmethod
    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D], the tokens of all images, concatenated, in wire layout."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Makes the backward pass recompute the activations of the layers, which saves memory and takes time."""

    def last_blocks(self, count: int) -> list[nn.Module]:
        """Returns the last ``count`` blocks and all modules that read their output (``model.train = "last:N"``).

        Args:
            count: number of blocks, at least 1.

        Raises:
            ModelError: the tower has fewer blocks, or its class does not define this method.
        """
        raise ModelError(
            f"the tower of {self.family} does not name its blocks",
            where=f'model.train = "last:{count}"',
            fix='define last_blocks in its class, or set model.train = "all" or "lora"',
        )

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the description from which ``Family.rebuild_tower`` builds the tower, as JSON values."""

    @abstractmethod
    def save_preprocessing(self, folder: Path) -> None:
        """Writes the preprocessing files into an existing folder."""


class FrozenBackbone(nn.Module, ABC):
    """The frozen language model p_psi: gradients flow through it to its inputs; its weights never change."""

    layout: TokenLayout
    """Sizes of the encoder tokens."""
    num_layers: int
    """Number of decoder layers."""

    def freeze(self) -> None:
        """Makes all parameters constant and switches to evaluation mode; to be called when the weights are loaded."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Keeps evaluation mode for any ``mode``, so that a parent module's ``train()`` has no effect."""
        return super().train(False)

    def digest(self) -> str:
        """Returns the sha256 over names, dtypes, shapes and bytes of all weights."""
        return weights_digest(self)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @abstractmethod
    def build_layout(self, prompt_ids: Sequence[int], grids: Sequence[Grid]) -> PromptLayout:
        """Returns the prompt with one position per encoder token.

        Args:
            prompt_ids: token ids of the prompt, with one placeholder token per image.
            grids: patch grid of each image.

        Raises:
            TokenError: the number of placeholders differs from the number of images.
        """

    @abstractmethod
    def prefill(
        self, prompt: PromptLayout, values_NW: torch.Tensor | None, span: slice, past: KeyValues | None = None
    ) -> KeyValues:
        """Returns keys and values of the positions 0 to ``span.stop``, with the graph to ``values_NW`` attached.

        Args:
            prompt: the prompt.
            values_NW: encoder tokens of all images, [N, W]; None when the span has no image.
            span: positions to run. The tokens of an image must be all inside or all outside.
            past: keys and values of the positions before the span; None when the span starts at 0.
        """

    @abstractmethod
    def forward_completions(
        self, past: KeyValues, token_ids_GT: torch.Tensor, first_position: int, *, probe_layer: int | None = None
    ) -> PaddedOutput:
        """Runs the decoder over padded completions on the prefix that they share.

        Args:
            past: keys and values of all earlier positions, with batch size 1 (shared by all completions) or G.
            token_ids_GT: int64 [G, T], right-padded; attention is causal, so padding does not affect earlier positions.
            first_position: rotary position of the first column.
            probe_layer: decoder layer (from 0) whose attention will be read; None for none.
        """

    @abstractmethod
    def start_decode(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> SharedPrefixKVCache:
        """Returns a KV cache for ``decode_step``.

        Args:
            prefixes: keys and values of the prefixes, batch size 1 each, all of the same length.
            counts: number of rows (completions) on each prefix.
        """

    @abstractmethod
    def decode_step(self, cache: SharedPrefixKVCache, token_ids_B: torch.Tensor, position: int) -> torch.Tensor:
        """Returns the hidden states [B, D], after the last norm, of one more token in each row.

        Args:
            cache: keys and values of the rows; those of the new tokens are appended.
            token_ids_B: int64 [B], the new token of each row.
            position: rotary position of the new tokens.
        """

    @property
    @abstractmethod
    def supports_packing(self) -> bool:
        """True when ``forward_packed`` runs sequences of different lengths without padding."""

    @abstractmethod
    def forward_packed(
        self,
        past: KeyValues,
        sequences: Sequence[torch.Tensor],
        first_position: int,
        *,
        probe_layer: int | None = None,
    ) -> PackedOutput:
        """Runs the decoder over concatenated sequences on the prefix that they share.

        Args:
            past: keys and values of all earlier positions, batch size 1.
            sequences: int64 [T_g] each, of any lengths.
            first_position: rotary position of every sequence's first token.
            probe_layer: decoder layer (from 0) whose attention will be read; None for none.
        """

    @abstractmethod
    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [R, V] of hidden states [R, D]."""


class AttentionProbe(ABC):
    """Queries and keys of one decoder layer, stored in a forward pass, from which rows of attention are computed."""

    @abstractmethod
    def rows(self, completion: int, columns: torch.Tensor) -> torch.Tensor:
        """Returns rows of attention, float32 [R, prefix + T]: full causal softmax, mean over heads.

        Args:
            completion: index of the completion in the forward pass.
            columns: int64 [R], positions of the queries in the completion's sequence.
        """


def attention_rows(
    query_HTd: torch.Tensor, keys_hKd: torch.Tensor, columns_R: torch.Tensor, first: int, scale: float
) -> torch.Tensor:
    """Returns the attention of some queries to all keys, float32 [R, K] on the device of ``columns_R``.

    It is the full causal softmax, as a mean over heads.

    Args:
        query_HTd: [H, T, d], queries of a sequence after rotation.
        keys_hKd: [h, K, d], keys after rotation, for h key heads that the H heads share.
        columns_R: int64 [R], positions of the wanted queries in the sequence.
        first: index of the key of the sequence's first token; keys after a query's own are masked.
        scale: factor of the query-key products.
    """
    columns = columns_R.to(query_HTd.device)  # with layers on several devices, that of the layer
    query_HRd = query_HTd[:, columns]
    keys_HKd = keys_hKd.repeat_interleave(len(query_HRd) // len(keys_hKd), dim=0)
    scores_HRK = torch.einsum("hrd,hkd->hrk", query_HRd.float(), keys_HKd.float()) * scale
    later_RK = torch.arange(keys_HKd.shape[1], device=columns.device)[None] > (first + columns)[:, None]
    return scores_HRK.masked_fill(later_RK, -torch.inf).softmax(-1).mean(0).to(columns_R.device)


@dataclass(frozen=True, slots=True)
class PaddedOutput:
    """Output of the decoder for G padded completions."""

    hidden_GTD: torch.Tensor
    """[G, T, D], hidden states after the last norm, in the backbone's dtype."""
    probe: AttentionProbe | None
    """Attention of the probed layer; None without ``probe_layer``."""


@dataclass(frozen=True, slots=True)
class PackedOutput:
    """Output of the decoder for concatenated sequences."""

    hidden_RD: torch.Tensor
    """[sum of T_g, D], hidden states of all sequences after the last norm."""
    probe: AttentionProbe | None
    """Attention of the probed layer; None without ``probe_layer``."""


class Family(ABC):
    """A family of multimodal LLMs, bound to one checkpoint: loads its parts, and has its token ids and prompt strings.

    A user's subclass is selected by import path (``model.family``); ``saga_dist.testing.check_model_family`` checks it.
    ``CheckpointFamily`` implements most of it for checkpoints whose parts are modules of transformers.

    Args:
        files: files of the checkpoint.
        config: content of the checkpoint's config.json.
    """

    name: ClassVar[str]
    """Short name, for reports."""
    architecture: ClassVar[str]
    """Class of the whole model in transformers, as in ``architectures`` of config.json."""
    image_placeholder: ClassVar[str]
    """Text of one image in a prompt; it contains the image token exactly once."""
    chat_format: ClassVar[ChatFormat]
    """Text before and after the user's text in a chat prompt."""

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        self.files = files
        self.config = config

    @property
    @abstractmethod
    def layout(self) -> TokenLayout:
        """Sizes of the encoder tokens, computed from the configuration alone."""

    @property
    @abstractmethod
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids of image, video and vision tokens; never sampled, because a completion with one cannot be replayed."""

    @abstractmethod
    def load_tower(self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> VisionTower:
        """Returns the tower with the checkpoint's weights; the language model's are not read."""

    @abstractmethod
    def load_backbone(
        self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> FrozenBackbone:
        """Returns the frozen language model; the tower's weights are not read."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the checkpoint's tokenizer."""

    @abstractmethod
    def image_inputs(self, tokens: EncoderTokens) -> dict[str, Any]:
        """Returns the images of one request to a serving engine: encoder tokens in place of pixels, on the host.

        The result is the ``multi_modal_data`` of a vLLM request, ``{"image": ...}``, in the form that the model's class
        accepts as image embeddings.
        """

    def engine_prompt_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        """Returns the token ids of the prompt for a serving engine that expands image placeholders itself."""
        return list(prompt_ids)

    @classmethod
    @abstractmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> VisionTower:
        """Returns a tower with uninitialised weights.

        Args:
            description: result of ``VisionTower.describe``.
            folder: folder with the preprocessing files.
            dtype: dtype of the weights.
        """
