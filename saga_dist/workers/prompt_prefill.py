"""Prefill of a prompt with the encoder tokens of a pair, as replay needs it: with the graph to the tokens attached."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saga_dist.models.families.base import FrozenBackbone, PromptLayout
from saga_dist.models.families.key_values import KeyValues
from saga_dist.types import EncoderTokens, Grid
from saga_dist.workers.engines.validation import validate_tokens


class PromptPrefill:
    """A prompt of the frozen language model, and what is the same for all pairs of a run.

    Layouts are kept by the grids of the images. Keys and values of the text before the first image are constants of the
    run and are computed once; in text-first prompts this is nearly all of the text.

    Args:
        backbone: the frozen language model.
        prompt_ids: token ids of the prompt, with one placeholder per image.
    """

    def __init__(self, backbone: FrozenBackbone, prompt_ids: Sequence[int]) -> None:
        self._backbone, self._prompt_ids = backbone, prompt_ids
        self._layouts: dict[tuple[Grid, ...], PromptLayout] = {}
        self._common_prefix: KeyValues | None = None
        """Keys and values of the text before the first image; None before the first pair."""

    def load(self, tokens: EncoderTokens) -> tuple[PromptLayout, torch.Tensor]:
        """Returns the prompt with the tokens' grids, and the tokens' values in float32 on the backbone's device.

        Raises:
            TokenError: the tokens do not fit the model.
        """
        layout = self._backbone.layout
        validate_tokens(
            tokens,
            width=layout.width,
            num_deepstack=layout.num_deepstack,
            merge_size=layout.merge_size,
            dtype=tokens.values_NW.dtype,
        )
        return self._layout(tokens.grids), tokens.values_NW.detach().to(self._backbone.device, torch.float32)

    def keys_and_values(self, prompt: PromptLayout, values_NW: torch.Tensor) -> KeyValues:
        """Returns keys and values of the prompt without its last token.

        The last token runs with every completion, because its hidden state predicts the first token after the prompt.

        Args:
            prompt: the prompt with the grids of the images.
            values_NW: [N, W] values of the encoder tokens, to which the graph leads.
        """
        columns = slice(prompt.images[0].start, len(prompt.token_ids_S) - 1)
        return self._backbone.prefill(prompt, values_NW, columns, self._common_prefix_of(prompt))

    def _layout(self, grids: tuple[Grid, ...]) -> PromptLayout:
        """Returns the prompt for images with these patch grids, from a cache."""
        if grids not in self._layouts:
            self._layouts[grids] = self._backbone.build_layout(self._prompt_ids, grids)
        return self._layouts[grids]

    @torch.no_grad()
    def _common_prefix_of(self, prompt: PromptLayout) -> KeyValues | None:
        """Returns keys and values of the text before the first image, from a cache; None when there is no such text."""
        start = prompt.images[0].start
        if self._common_prefix is None and start:
            self._common_prefix = self._backbone.prefill(prompt, None, slice(0, start))
        return self._common_prefix
