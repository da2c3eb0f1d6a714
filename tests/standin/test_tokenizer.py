"""The stand-in's tokenizer: any text survives, and the texts it was made for are short."""

from __future__ import annotations

import random

import pytest

from saga_dist.data.prompts import PromptSpec, render_prompt
from saga_dist.data.vocabularies import VOCABULARIES
from saga_dist.standin.language import COLOR_WORDS, PARTS, STANDIN_PROMPT, answer_text
from saga_dist.standin.tokenizer import IMAGE_PLACEHOLDER, SPECIAL_TOKENS, build_tokenizer

TOKENIZER = build_tokenizer()


def round_trip(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(20))
def test_random_unicode_survives(seed: int) -> None:
    generator = random.Random(seed)
    words = [*COLOR_WORDS["bill"], *SPECIAL_TOKENS, " ", "\n", '"}', "\x00", "e\u0301", "\U0001f426"]
    letters = [chr(code) for code in (generator.randrange(0x110000) for _ in range(200)) if not 0xD800 <= code < 0xE000]
    pieces = letters + generator.choices(words, k=60)
    generator.shuffle(pieces)
    text = "".join(pieces)
    assert round_trip(text) == text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_prompts_of_all_vocabularies_survive(name: str) -> None:
    for variant in ("structured", "generic"):
        for order in ("images_first", "text_first"):
            spec = PromptSpec(VOCABULARIES[name], variant, order)
            text = render_prompt(spec, image_a=IMAGE_PLACEHOLDER, image_b=IMAGE_PLACEHOLDER)
            assert round_trip(text) == text


def test_special_tokens_are_recognised_inside_text() -> None:
    ids = TOKENIZER.encode(f"a{IMAGE_PLACEHOLDER}b<|im_end|>").ids
    assert [token for token in ids if token < len(SPECIAL_TOKENS)] == [
        SPECIAL_TOKENS.index(token) for token in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>")
    ]


def test_prompt_and_answer_are_short() -> None:
    prompt = render_prompt(STANDIN_PROMPT, image_a=IMAGE_PLACEHOLDER, image_b=IMAGE_PLACEHOLDER)
    assert len(TOKENIZER.encode(prompt).ids) == 14
    for other in ([0] * 6, [1] * 6, [0, 1, 0, 0, 0, 0]):
        assert len(TOKENIZER.encode(answer_text([0] * 6, other)).ids) == 39


def test_each_color_word_is_one_token_and_no_token_reaches_into_it() -> None:
    text = answer_text([0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2])
    encoding = TOKENIZER.encode(text)
    spans = [text[start:stop] for start, stop in encoding.offsets]
    words = [COLOR_WORDS[part][value] for part, value in zip(PARTS, [0, 1, 2, 3, 0, 1], strict=True)]
    words += [COLOR_WORDS[part][value] for part, value in zip(PARTS, [3, 2, 1, 0, 3, 2], strict=True)]
    assert [span for span in spans if span in words] == words
