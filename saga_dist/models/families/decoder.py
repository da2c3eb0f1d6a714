"""Frozen decoder on a module of transformers: prefill with encoder tokens, completions, attention of one layer.

Families differ in the decoder's class and in the rotary positions of an image.

Where torch has a kernel for it (``attention_backends``), prompts and groups run packed (``packed_attention``): one row
of tokens without padding, and without a copy of the prefix. Elsewhere groups are padded (``padded_attention``).
Autoregressive decoding has a KV cache of its own (``kv_cache``) on every device.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from saga_dist.errors import ModelError, TokenError
from saga_dist.models.families.attention_backends import AttentionBackend, find_backend
from saga_dist.models.families.base import FrozenBackbone, PackedOutput, PaddedOutput, PromptLayout, TokenLayout
from saga_dist.models.families.custom_attention import AttentionContext, StopForward, use_custom_attention
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.families.kv_cache import SharedPrefixKVCache
from saga_dist.models.families.packed_attention import PackedContext
from saga_dist.models.families.padded_attention import PaddedContext
from saga_dist.models.weights import build_empty
from saga_dist.types import Grid


class DecoderBackbone(FrozenBackbone):
    """Decoder and output layer of a checkpoint, with uninitialised weights.

    Args:
        config: configuration of the whole checkpoint.
        layout: sizes of the encoder tokens.
        tied: True when the output layer is the transposed embedding table.
        dtype: dtype of the weights.
        device: device of the weights.

    Raises:
        ModelError: the tokens have more DeepStack levels than the decoder has layers.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    """Class of the decoder in transformers."""
    rotary_class: ClassVar[type[nn.Module]]
    """Class of the decoder's rotary embedding, whose buffers are computed, not loaded."""

    def __init__(
        self,
        config: PreTrainedConfig,
        layout: TokenLayout,
        *,
        tied: bool,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        super().__init__()
        text = config.text_config
        if layout.num_deepstack > text.num_hidden_layers:
            raise ModelError(
                f"{layout.num_deepstack} DeepStack levels",
                where="config.json",
                expected=f"at most {text.num_hidden_layers}",
            )
        self.layout = layout
        self.num_layers: int = text.num_hidden_layers
        self._image_token_id: int = config.image_token_id
        self._text_config = text
        self.packs = True
        """False to pad groups and prompts also where there is a kernel of packed attention, for comparisons."""
        self.language_model = build_empty(
            lambda: self.model_class._from_config(text, attn_implementation="sdpa", dtype=dtype), device=device
        )
        self.language_model.rotary_emb = self.rotary_class(config=text).to(device)
        self.head: nn.Linear | None = None
        """Output layer; None when it is the transposed embedding table."""
        if not tied:
            self.head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, dtype=dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.language_model.embed_tokens.weight.device

    @property
    def supports_packing(self) -> bool:
        """True when ``packs``, and there is a kernel of packed attention for device, dtype and head width here."""
        return self._backend is not None

    @property
    def _backend(self) -> AttentionBackend | None:
        """Kernels of packed attention; None where there are none, or ``packs`` is False."""
        if not self.packs:
            return None
        text = self._text_config
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return find_backend(self.device, self.language_model.embed_tokens.weight.dtype, width)

    @abstractmethod
    def _image_positions(self, grid: Grid) -> tuple[torch.Tensor, int]:
        """Returns the rotary positions of one image's tokens, [R, N] from 0, and the offset of the text after it."""

    def build_layout(self, prompt_ids: Sequence[int], grids: Sequence[Grid]) -> PromptLayout:
        """Returns the prompt with one position per encoder token; a text token advances all rotary axes by one."""
        placeholders = sum(token_id == self._image_token_id for token_id in prompt_ids)
        if placeholders != len(grids):
            raise TokenError(
                f"{len(grids)} images", where="prompt", expected=f"{placeholders}, one per image placeholder"
            )
        token_ids: list[int] = []
        images: list[slice] = []
        positions: list[torch.Tensor] = []
        position, remaining = 0, iter(grids)
        for is_image, group in itertools.groupby(prompt_ids, key=lambda token_id: token_id == self._image_token_id):
            ids = list(group)
            if not is_image:
                positions.append(self._text_positions(position, len(ids)))
                token_ids += ids
                position += len(ids)
                continue
            for grid in itertools.islice(remaining, len(ids)):
                own_RN, advance = self._image_positions(grid)
                positions.append(position + own_RN)
                images.append(slice(len(token_ids), len(token_ids) + self.layout.num_tokens(grid)))
                token_ids += [self._image_token_id] * self.layout.num_tokens(grid)
                position += advance
        return PromptLayout(
            token_ids_S=torch.tensor(token_ids, device=self.device),
            images=tuple(images),
            position_ids_RS=torch.cat(positions, dim=1).to(self.device),
            next_position=position,
        )

    def prefill(
        self, prompt: PromptLayout, values_NW: torch.Tensor | None, span: slice, past: KeyValues | None = None
    ) -> KeyValues:
        """Returns keys and values of the positions up to ``span.stop``, with the graph to ``values_NW`` attached."""
        start, stop = span.start, span.stop
        inputs_SD = self.language_model.embed_tokens(prompt.token_ids_S[start:stop])
        deepstack: dict[str, Any] = {}
        if values_NW is not None:
            values_NW = values_NW.to(inputs_SD.dtype)
            positions_N = prompt.image_positions().to(self.device) - start
            # Not in place, so that the rows of the embedding table remain constants of the graph.
            inputs_SD = inputs_SD.index_copy(0, positions_N, self.layout.main(values_NW))
            if self.layout.num_deepstack:
                mask_1S = torch.zeros(1, stop - start, dtype=torch.bool, device=self.device)
                mask_1S[0, positions_N] = True
                levels = list(self.layout.levels(values_NW))
                deepstack = {"visual_pos_masks": mask_1S, "deepstack_visual_embeds": levels}
        positions_RS = prompt.position_ids_RS[:, start:stop]
        context = self._prompt_context(past, stop - start)
        with contextlib.suppress(StopForward):  # nothing after the last layer's keys and values is needed
            self._forward(context, inputs_SD[None], positions_RS, **deepstack)
        return context.key_values()

    def _prompt_context(self, past: KeyValues | None, num_tokens: int) -> PackedContext | PaddedContext:
        """Returns the attention of a prompt of ``num_tokens`` tokens, which ends when all keys and values are there."""
        backend = self._backend
        if backend is None:
            return PaddedContext(past, num_layers=self.num_layers)
        return PackedContext(past, (num_tokens,), backend, num_layers=self.num_layers)

    def forward_packed(
        self,
        past: KeyValues,
        sequences: Sequence[torch.Tensor],
        first_position: int,
        *,
        probe_layer: int | None = None,
    ) -> PackedOutput:
        """Returns the hidden states of concatenated sequences on a shared prefix; pads them unless packing works."""
        lengths, backend = [len(sequence) for sequence in sequences], self._backend
        if backend is None:
            padded_GT = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
            run = self.forward_completions(past, padded_GT, first_position, probe_layer=probe_layer)
            rows = zip(run.hidden_GTD, lengths, strict=True)
            return PackedOutput(torch.cat([row_TD[:length] for row_TD, length in rows]), run.probe)
        context = PackedContext(past, lengths, backend, probe_layer)
        positions_RT = torch.cat([self._text_positions(first_position, length) for length in lengths], dim=1)
        inputs_TD = self.language_model.embed_tokens(torch.cat(list(sequences)))
        hidden_TD = self._forward(context, inputs_TD[None], positions_RT)[0]
        return PackedOutput(hidden_TD, context.probe)

    def forward_completions(
        self, past: KeyValues, token_ids_GT: torch.Tensor, first_position: int, *, probe_layer: int | None = None
    ) -> PaddedOutput:
        """Runs the decoder over padded completions on the prefix that they share."""
        context = PaddedContext(past, probe_layer)
        positions_RT = self._text_positions(first_position, token_ids_GT.shape[1])
        hidden_GTD = self._forward(context, self.language_model.embed_tokens(token_ids_GT), positions_RT)
        return PaddedOutput(hidden_GTD, context.probe)

    def start_decode(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> SharedPrefixKVCache:
        """Returns a KV cache for ``decode_step``, with ``counts`` rows on each prefix."""
        return SharedPrefixKVCache(prefixes, counts)

    def decode_step(self, cache: SharedPrefixKVCache, token_ids_B: torch.Tensor, position: int) -> torch.Tensor:
        """Returns the hidden states [B, D] of one more token in each row."""
        inputs_B1D = self.language_model.embed_tokens(token_ids_B[:, None])
        return self._forward(cache, inputs_B1D, self._text_positions(position, 1))[:, 0]

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits [R, V] of hidden states [R, D]."""
        weight = self.language_model.embed_tokens.weight if self.head is None else self.head.weight
        return nn.functional.linear(hidden_RD, weight).float()

    def _forward(
        self, context: AttentionContext, inputs_BTD: torch.Tensor, positions_RT: torch.Tensor, **deepstack: Any
    ) -> torch.Tensor:
        """Returns the hidden states [B, T, D] of a forward pass whose attention is computed by ``context``."""
        with use_custom_attention(self.language_model.config):
            output = self.language_model(
                inputs_embeds=inputs_BTD,
                position_ids=_batch_positions(positions_RT.to(self.device), len(inputs_BTD)),
                use_cache=False,
                attention_context=context,
                **deepstack,
            )
        hidden_BTD: torch.Tensor = output.last_hidden_state
        return hidden_BTD

    def _text_positions(self, first: int, count: int) -> torch.Tensor:
        """Returns rotary positions of text, [R, count], the same on every axis."""
        return torch.arange(first, first + count)[None]


class MropeBackbone(DecoderBackbone):
    """A decoder with three rotary axes: frame, row and column."""

    def _image_positions(self, grid: Grid) -> tuple[torch.Tensor, int]:
        """Returns (frame, row, column) of each token, and the larger side in tokens, after which the text continues."""
        rows, columns = (side // self.layout.merge_size for side in grid[1:])
        axes = torch.meshgrid(torch.arange(grid[0]), torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack(axes).flatten(1), max(rows, columns)

    def _text_positions(self, first: int, count: int) -> torch.Tensor:
        return super()._text_positions(first, count).expand(3, -1)


def _batch_positions(positions_RS: torch.Tensor, batch: int) -> torch.Tensor:
    """Returns positions in the form that decoders take: [B, S] for one rotary axis, [3, B, S] for three."""
    if len(positions_RS) == 1:
        return positions_RS.expand(batch, -1)
    return positions_RS[:, None].expand(-1, batch, -1)
