"""Interface of a family of multimodal LLMs: a trainable tower, a frozen language model, and the wire between them.

    images ──preprocess──► PixelBatch ──VisionTower──► values_NW ──(the wire)──► FrozenBackbone ──► log-probs, attention

The wire layout is what vLLM takes as image embeddings: main tokens first, then the L DeepStack maps, side by side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from saga_dist.data.prompts import ChatFormat
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.families.kv_cache import SharedPrefixKVCache
from saga_dist.models.model_files import ModelFiles
from saga_dist.types import EncoderTokens, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Sizes of the encoder tokens of one checkpoint."""

    width: int
    """D, the width of one level."""
    num_deepstack: int
    """L, the DeepStack maps that follow the main tokens."""
    patch_size: int
    merge_size: int
    """Patches per side that make one token."""

    @property
    def wire_width(self) -> int:
        """W = (1 + L) * D."""
        return (1 + self.num_deepstack) * self.width

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels behind one token; image sides are multiples of it."""
        return self.patch_size * self.merge_size

    def num_tokens(self, grid: Grid) -> int:
        """Returns N, the tokens of an image with this patch grid."""
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
    """float32, as the family's tower takes it: [sum of patches, channels * frames * patch * patch] in Qwen's families,
    [I, 3, size, size] in InternVL."""
    grids: tuple[Grid, ...]
    lengths: tuple[int, ...]
    """Tokens of each image after merging."""


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """A prompt with its image placeholders opened to one position per encoder token."""

    token_ids_S: torch.Tensor
    """[S] int64."""
    images: tuple[slice, ...]
    """Positions of each image's tokens."""
    position_ids_RS: torch.Tensor
    """[R, S] int64, one row per rotary axis."""
    next_position: int
    """Rotary position of the first generated token, on every axis."""

    def image_positions(self) -> torch.Tensor:
        """Returns [N] int64: the positions of all encoder tokens, in wire order."""
        return torch.cat([torch.arange(image.start, image.stop) for image in self.images])


class VisionTower(nn.Module, ABC):
    """The trainable vision encoder f_theta: images to encoder tokens."""

    family: ClassVar[str]
    """The family whose ``rebuild_tower`` makes this tower again, as a saved encoder names it: a built-in name or
    ``package.module:object``."""
    layout: TokenLayout

    @abstractmethod
    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns pixels of uint8 [height, width, 3] images at exactly their size.

        Raises:
            DataError: an image is not uint8 RGB, or a side is not a multiple of ``layout.pixels_per_token``.
        """

    @abstractmethod
    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D] of all images one below the other, in wire layout."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Trades time for memory: layers are run again in the backward pass."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns what ``Family.rebuild_tower`` needs besides weights and preprocessing files, as JSON values."""

    @abstractmethod
    def save_preprocessing(self, folder: Path) -> None:
        """Writes the preprocessing files into an existing folder."""


class FrozenBackbone(nn.Module, ABC):
    """The language model p_psi: gradients flow through it, never into it."""

    layout: TokenLayout
    num_layers: int

    def freeze(self) -> None:
        """Takes all parameters out of training, for good; call once the weights are in place."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in evaluation mode whatever is asked, so that a parent's ``train()`` cannot wake it."""
        return super().train(False)

    def digest(self) -> str:
        """Returns the sha256 over names, types, shapes and bytes of all weights."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @abstractmethod
    def build_layout(self, prompt_ids: Sequence[int], grids: Sequence[Grid]) -> PromptLayout:
        """Returns the prompt with one position per encoder token; ``prompt_ids`` has one placeholder per image.

        Raises:
            TokenError: the prompt has another number of placeholders than there are images.
        """

    @abstractmethod
    def prefill(
        self, prompt: PromptLayout, values_NW: torch.Tensor | None, span: slice, past: KeyValues | None = None
    ) -> KeyValues:
        """Returns keys and values of the positions up to ``span.stop``, the graph to ``values_NW`` attached.

        Args:
            prompt: the prompt.
            values_NW: encoder tokens of all images; None when the span holds no image.
            span: positions to run; what lies before them is in ``past``. An image lies wholly inside or outside.
            past: keys and values of the positions before the span.
        """

    @abstractmethod
    def forward_completions(
        self, past: KeyValues, token_ids_GT: torch.Tensor, first_position: int, *, probe_layer: int | None = None
    ) -> Continuation:
        """Runs the decoder over completions, padded, on the prefix that they share.

        Args:
            past: keys and values of all earlier positions; batch size 1 (shared, never copied G times) or G.
            token_ids_GT: int64, right-padded; by causality padding reaches no earlier position.
            first_position: rotary position of the first column.
            probe_layer: decoder layer (from 0) whose attention is wanted.
        """

    @abstractmethod
    def start_decode(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> SharedPrefixKVCache:
        """Returns the KV cache of rows that ``decode_step`` extends token by token.

        Args:
            prefixes: keys and values of what comes before, batch size 1 each, all of one length.
            counts: rows on each prefix.
        """

    @abstractmethod
    def decode_step(self, cache: SharedPrefixKVCache, token_ids_B: torch.Tensor, position: int) -> torch.Tensor:
        """Returns hidden states [B, D] of one more token in each row, after the last norm.

        Args:
            cache: keys and values of the rows so far; the token's are appended.
            token_ids_B: int64.
            position: rotary position of the token.
        """

    @property
    @abstractmethod
    def supports_packing(self) -> bool:
        """True when ``forward_packed`` takes sequences of any lengths without padding them."""

    @abstractmethod
    def forward_packed(
        self,
        past: KeyValues,
        sequences: Sequence[torch.Tensor],
        first_position: int,
        *,
        probe_layer: int | None = None,
    ) -> GroupRun:
        """Runs the decoder over a group of sequences, one behind the other, on the prefix that they share.

        Args:
            past: keys and values of all earlier positions, batch size 1.
            sequences: int64 [T_g] each, of any lengths.
            first_position: rotary position of every sequence's first token.
            probe_layer: decoder layer (from 0) whose attention is wanted.
        """

    @abstractmethod
    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [R, V]."""


class AttentionProbe(ABC):
    """Queries and keys of one decoder layer, kept from a run so that a few rows of attention can be read."""

    @abstractmethod
    def rows(self, completion: int, columns: torch.Tensor) -> torch.Tensor:
        """Returns attention [R, prefix + T] float32, full softmax, mean over heads, from the chosen tokens.

        Args:
            completion: row of the batch.
            columns: [R] int64, columns of ``token_ids_GT`` that look.
        """


def attention_rows(
    query_HRd: torch.Tensor, keys_HKd: torch.Tensor, positions_R: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns attention [R, K] float32 from queries on keys: full causal softmax, mean over heads.

    Args:
        query_HRd: [H, R, d] after rotation.
        keys_HKd: [H, K, d] after rotation.
        positions_R: int64 [R], the column of each query's own key; later ones are not seen.
        scale: of the products.
    """
    scores_HRK = torch.einsum("hrd,hkd->hrk", query_HRd.float(), keys_HKd.float()) * scale
    later_RK = torch.arange(keys_HKd.shape[1], device=positions_R.device)[None] > positions_R[:, None]
    return scores_HRK.masked_fill(later_RK, -torch.inf).softmax(-1).mean(0)


@dataclass(frozen=True, slots=True)
class Continuation:
    """Output of the decoder over G completions."""

    hidden_GTD: torch.Tensor
    """[G, T, D] after the last norm, in the backbone's dtype."""
    probe: AttentionProbe | None
    """Attention of the probed layer, when one was asked for."""


@dataclass(frozen=True, slots=True)
class GroupRun:
    """Output of the decoder over a group of sequences."""

    hidden_RD: torch.Tensor
    """[sum of T_g, D] after the last norm, one sequence behind the other."""
    probe: AttentionProbe | None
    """Attention of the probed layer, when one was asked for."""


class Family(ABC):
    """A family of multimodal LLMs, bound to one checkpoint: loads its parts and holds its strings and ids.

    A subclass of one's own is named by import path (``model.family``); ``saga_dist.testing.check_model_family`` checks
    it. Checkpoints whose parts are modules of transformers are less work through ``CheckpointFamily``.

    Args:
        files: the checkpoint.
        config: content of its config.json.
    """

    name: ClassVar[str]
    """Short name, for reports."""
    architecture: ClassVar[str]
    """Class of the whole model in transformers, as in ``architectures`` of config.json."""
    image_placeholder: ClassVar[str]
    """Text that stands for one image in a prompt; holds the image token once."""
    chat_format: ClassVar[ChatFormat]
    """Turn markers before and after the user's text."""

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        self.files = files
        self.config = config

    @property
    @abstractmethod
    def layout(self) -> TokenLayout:
        """Sizes of the encoder tokens, from the configuration alone."""

    @property
    @abstractmethod
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Image, video and vision markers: never sampled, because a completion that holds one cannot be replayed."""

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

        The form is what the model's own class takes as image embeddings, by modality: ``{"image": ...}``, the
        ``multi_modal_data`` of a vLLM request.
        """

    def engine_prompt_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        """Returns the token ids of the prompt for a serving engine that expands image placeholders itself."""
        return list(prompt_ids)

    @classmethod
    @abstractmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> VisionTower:
        """Returns a tower from ``VisionTower.describe`` and preprocessing files, its weights not yet set."""
