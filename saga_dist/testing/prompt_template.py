"""Contract check of prompt templates (``data.prompt_templates.PromptTemplate``)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from saga_dist.data.prompt_templates import AnswerKeys, PromptTemplate
from saga_dist.data.prompts import ORDERS, compose_prompt
from saga_dist.data.vocabularies import VOCABULARIES, Vocabulary
from saga_dist.testing.require import require

SPECIAL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<IMG_CONTEXT>", "<img>",
    "</img>",
)  # fmt: skip
"""Special tokens of the supported families, which a tokenizer reads as a turn or an image."""


def check_prompt_template(template: PromptTemplate, *, vocabularies: Iterable[Vocabulary] = ()) -> None:
    """Checks that text and answer keys of a template are consistent, for every vocabulary.

    - Text and keys depend on the vocabulary alone, because every process renders them.
    - The text contains every key of the answer in quotes, in the order of the answer.
    - The text contains no special token, no characters that a tokenizer refuses, and no image placeholder; the images
      are added before or after it.

    Args:
        template: an object with ``render(vocabulary)`` and ``answer_keys(vocabulary)``.
        vocabularies: vocabularies that the template is made for; empty: all built-in ones.

    Raises:
        AssertionError: one of these points does not hold; the message names the vocabulary and the reason.
    """
    for vocabulary in vocabularies or VOCABULARIES.values():
        answer, text = template.answer_keys(vocabulary), template.render(vocabulary)
        where = f"vocabulary of {vocabulary.plural}"
        require(isinstance(answer, AnswerKeys), f"{where}: keys are {type(answer).__name__}; expected AnswerKeys")
        require(isinstance(text, str) and bool(text.strip()), f"{where}: the text is {text!r}; expected words")
        require(template.answer_keys(vocabulary) == answer, f"{where}: the keys are others when asked again")
        require(template.render(vocabulary) == text, f"{where}: the text is another when rendered again")
        _check_characters(text, where)
        _check_keys(text, answer, where)
        _check_images(text, vocabulary, where)


def _check_characters(text: str, where: str) -> None:
    for token in SPECIAL_TOKENS:
        require(token not in text, f"{where}: the text holds the special token {token}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AssertionError(f"{where}: the text holds a lone surrogate ({error.reason})") from error


def _check_keys(text: str, answer: AnswerKeys, where: str) -> None:
    position = 0
    for key in answer.keys:
        found = text.find(json.dumps(key, ensure_ascii=False), position)
        require(found >= 0, f'{where}: the text does not name "{key}" after the keys before it; expected {answer.keys}')
        position = found + 1


def _check_images(text: str, vocabulary: Vocabulary, where: str) -> None:
    for order in ORDERS:
        prompt = compose_prompt(text, vocabulary, order, image_a="<image a>", image_b="<image b>")
        places = [prompt.find("<image a>"), prompt.find("<image b>")]
        require(
            0 <= places[0] < places[1] and prompt.count("<image a>") == prompt.count("<image b>") == 1,
            f"{where}, {order}: the prompt does not show image a and image b once each, in this order",
        )
