"""The stand-in's tokenizer: whole phrases are single tokens, and every other text falls back to bytes."""

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
"""Qwen's names; their ids are their positions here."""

VARIANTS: tuple[Literal["structured", "generic"], ...] = ("structured", "generic")
ORDERS: tuple[Literal["images_first", "text_first"], ...] = ("images_first", "text_first")

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def build_tokenizer() -> Tokenizer:
    """Returns the tokenizer: lossless for any text, about 12 tokens for the prompt and 43 for an answer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    phrases = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in dict.fromkeys((*_prompt_pieces(), *answer_pieces()))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Unigram picks the split with the highest score: equal scores mean the fewest tokens, and a byte costs more than
    # any phrase. Special tokens are cut out of the text before, so their score is never used.
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocabulary += [(letter, -10.0) for letter in alphabet]
    vocabulary += [(phrase, -1.0) for phrase in phrases if phrase not in alphabet]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _prompt_pieces() -> list[str]:
    """The stretches between special tokens of each prompt variant; and their lines, for prompts close to these."""
    special = "|".join(re.escape(token) for token in SPECIAL_TOKENS)
    pieces: list[str] = []
    for variant, order in product(VARIANTS, ORDERS):
        spec = PromptSpec(STANDIN_BIRDS, variant, order)
        text = render_prompt(spec, image_a=IMAGE_PLACEHOLDER, image_b=IMAGE_PLACEHOLDER)
        for stretch in filter(None, re.split(special, text)):
            pieces += [stretch, *(line for line in stretch.split("\n") if line), "\n"]
    return pieces
