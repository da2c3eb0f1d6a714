"""The stand-in's tokenizer: known phrases are single tokens, and all other text is split into bytes."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Literal

from saga_dist.data.prompts import PromptSpec, render_prompt
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.standin.language import answer_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens with Qwen's names; the id of each is its position in this tuple."""

VARIANTS: tuple[Literal["structured", "generic"], ...] = ("structured", "generic")
"""Prompt variants whose phrases are tokens."""
ORDERS: tuple[Literal["images_first", "text_first"], ...] = ("images_first", "text_first")
"""Prompt orders whose phrases are tokens."""

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
"""Text of one image in a prompt, with one token of padding for all its tokens."""


def build_tokenizer() -> Tokenizer:
    """Returns the tokenizer, which is lossless for any text.

    The prompt has about 12 tokens and an answer about 43.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    phrases = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in dict.fromkeys((*_prompt_pieces(), *answer_pieces()))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Unigram selects the split with the highest total score: with equal scores it has the fewest tokens, and a byte
    # costs more than a phrase. Special tokens are extracted before, so their score is never used.
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocabulary += [(letter, -10.0) for letter in alphabet]
    vocabulary += [(phrase, -1.0) for phrase in phrases if phrase not in alphabet]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _prompt_pieces() -> list[str]:
    """Returns the texts between special tokens of each prompt variant, and their lines, for prompts close to these."""
    special = "|".join(re.escape(token) for token in SPECIAL_TOKENS)
    pieces: list[str] = []
    for variant, order in product(VARIANTS, ORDERS):
        spec = PromptSpec(STANDIN_BIRDS, variant, order)
        text = render_prompt(spec, image_a=IMAGE_PLACEHOLDER, image_b=IMAGE_PLACEHOLDER)
        for part in filter(None, re.split(special, text)):
            pieces += [part, *(line for line in part.split("\n") if line), "\n"]
    return pieces
