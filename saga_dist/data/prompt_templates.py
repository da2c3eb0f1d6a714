"""Prompt templates (``prompt.variant``): the text of the comparison prompt, and the JSON keys of its answer.

The built-in templates are the paper's prompt (``structured``) and its ablation (``generic``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from saga_dist.config.registries import PROMPT_TEMPLATES
from saga_dist.data.vocabularies import Vocabulary
from saga_dist.errors import ConfigError

CONFIDENCES = ("high", "medium", "low")
"""Values of the key ``confidence`` that the prompt offers."""
VERDICTS = ("yes", "no")
"""Values of the verdict that the prompt offers."""


@dataclass(frozen=True, slots=True)
class AnswerKeys:
    """Top-level keys of the JSON object that a prompt requests as the answer.

    Raises:
        ConfigError: a key is empty or occurs twice, ``verdict_key``, ``key_a`` or ``key_b`` is not among ``keys``, or
            only one image is described.
    """

    keys: tuple[str, ...]
    """All keys, in the order of the answer."""
    verdict_key: str
    """Key of the verdict, whose value is ``yes`` (same class) or ``no``."""
    key_a: str = ""
    """Key of the description of image a, an object of attributes; empty when images are not described."""
    key_b: str = ""
    """Key of the description of image b, an object of attributes; empty when images are not described."""

    def __post_init__(self) -> None:
        if not isinstance(self.keys, tuple) or not all(isinstance(key, str) and key for key in self.keys):
            raise ConfigError(f"keys {self.keys!r}", where=_WHERE, expected="a tuple of non-empty strings")
        if len(set(self.keys)) != len(self.keys):
            raise ConfigError(f"keys {self.keys!r}", where=_WHERE, expected="each key once")
        if bool(self.key_a) != bool(self.key_b) or (self.key_a and self.key_a == self.key_b):
            raise ConfigError(
                f"key_a = {self.key_a!r}, key_b = {self.key_b!r}", where=_WHERE, expected="two keys, or none for both"
            )
        for key in (self.verdict_key, *([self.key_a, self.key_b] if self.describes_images else [])):
            if key not in self.keys:
                raise ConfigError(f"{key!r} is not among the keys", where=_WHERE, expected=f"one of {self.keys}")

    @property
    def describes_images(self) -> bool:
        """True when the answer describes each image; without that L_KL has no targets."""
        return bool(self.key_a)


_WHERE = f"{PROMPT_TEMPLATES.key}, answer_keys"


class PromptTemplate(Protocol):
    """The text of a comparison prompt, a pure function of the vocabulary; it is rendered in several processes.

    ``saga_dist.testing.check_prompt_template`` checks a template.
    """

    def render(self, vocabulary: Vocabulary) -> str:
        """Returns the text after the two images, or before them (``prompt.order``)."""

    def answer_keys(self, vocabulary: Vocabulary) -> AnswerKeys:
        """Returns the top-level keys of the answer, in the order in which the text requests them."""


class StructuredPrompt:
    """The paper's prompt: role, attributes, a description of each image, differences, confidence, verdict."""

    def render(self, vocabulary: Vocabulary) -> str:
        """Returns the instruction and the form of the answer."""
        article = "an" if vocabulary.expert[0].lower() in "aeiou" else "a"
        return "\n".join(
            (
                f"You are {article} {vocabulary.expert}: you identify {vocabulary.identifies} from photographs.",
                f"Specialists look at: {'; '.join(vocabulary.attributes)}.",
                f"You are given two {vocabulary.item} photographs. Do four things:",
                f"1. Describe {vocabulary.item} 1 along each of these attributes, a few words for each.",
                f"2. Describe {vocabulary.item} 2 in the same way.",
                "3. Sum up the key differences.",
                f"4. Decide whether both are of the {vocabulary.verdict_question}.",
                "Answer with one JSON object and nothing else, its keys in this order:",
                _shape(self.answer_keys(vocabulary), vocabulary),
            )
        )

    def answer_keys(self, vocabulary: Vocabulary) -> AnswerKeys:
        """Returns a key for each image (``bird_1``, ``bird_2``), three keys for the comparison, and the verdict key."""
        key_a, key_b, verdict_key = f"{vocabulary.item}_1", f"{vocabulary.item}_2", vocabulary.verdict_key
        keys = (key_a, key_b, "differences", "confidence", "reasoning", verdict_key)
        return AnswerKeys(keys, verdict_key, key_a, key_b)


class GenericPrompt:
    """The ablation of the paper's prompt: differences, reasoning, verdict; neither role nor attributes."""

    def render(self, vocabulary: Vocabulary) -> str:
        """Returns the instruction and the form of the answer."""
        return "\n".join(
            (
                f"You are given two {vocabulary.item} photographs. Sum up how they differ and decide whether both are "
                f"of the {vocabulary.verdict_question}.",
                "Answer with one JSON object and nothing else, its keys in this order:",
                _shape(self.answer_keys(vocabulary), vocabulary),
            )
        )

    def answer_keys(self, vocabulary: Vocabulary) -> AnswerKeys:
        """Returns two keys for the comparison, and the verdict key; images are not described."""
        return AnswerKeys(("differences", "reasoning", vocabulary.verdict_key), vocabulary.verdict_key)


STRUCTURED, GENERIC = StructuredPrompt(), GenericPrompt()


def load_template(name: str) -> PromptTemplate:
    """Returns a prompt template.

    Args:
        name: name of a built-in template, or import path (``prompt.variant``).

    Raises:
        ConfigError: the name is unknown, cannot be imported in this process, or is no template.
    """
    template: Any = PROMPT_TEMPLATES.load(name)
    if isinstance(template, type):
        raise ConfigError(f"{name!r} is a class", where=PROMPT_TEMPLATES.key, fix="name an object: TEMPLATE = Class()")
    missing = [method for method in ("render", "answer_keys") if not callable(getattr(template, method, None))]
    if missing:
        raise ConfigError(
            f"{name!r} has no method {missing[0]}",
            where=PROMPT_TEMPLATES.key,
            expected="render(vocabulary) and answer_keys(vocabulary)",
        )
    loaded: PromptTemplate = template
    return loaded


def _shape(answer: AnswerKeys, vocabulary: Vocabulary) -> str:
    """Returns the form of the answer: a JSON object with a placeholder for each value."""
    described = dict.fromkeys(vocabulary.attribute_keys, "...")
    values: Mapping[str, object] = {
        answer.key_a: described,
        answer.key_b: described,
        "differences": "...",
        "confidence": "|".join(CONFIDENCES),
        "reasoning": "one sentence",
        answer.verdict_key: "|".join(VERDICTS),
    }
    return json.dumps({key: values[key] for key in answer.keys})
