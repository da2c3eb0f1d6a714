"""The contract of prompt templates: the built-in ones keep it, and every way to break it is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from saga_dist.config.registries import PROMPT_TEMPLATES
from saga_dist.data.prompt_templates import AnswerKeys
from saga_dist.data.vocabularies import BIRDS, STANDIN_BIRDS, VOCABULARIES, Vocabulary
from saga_dist.testing import check_prompt_template

KEYS = AnswerKeys(("one", "two", "same"), "same", "one", "two")
TEXT = 'Answer with "one", "two" and "same".'


class Template:
    """A template that keeps the contract, and the place to break it."""

    def __init__(self, text: Any = TEXT, keys: Any = KEYS) -> None:
        self._text, self._keys = text, keys
        self.seen: list[Vocabulary] = []

    def render(self, vocabulary: Vocabulary) -> Any:
        self.seen.append(vocabulary)
        return self._text() if callable(self._text) else self._text

    def answer_keys(self, vocabulary: Vocabulary) -> Any:
        return self._keys() if callable(self._keys) else self._keys


@pytest.mark.parametrize("name", PROMPT_TEMPLATES.builtin)
def test_built_in_templates_keep_the_contract(name: str) -> None:
    check_prompt_template(PROMPT_TEMPLATES.load(name))


def test_every_vocabulary_is_tried_or_the_given_ones() -> None:
    template = Template()
    check_prompt_template(template)
    assert template.seen[::2] == template.seen[1::2] == list(VOCABULARIES.values())
    check_prompt_template(one := Template(), vocabularies=[BIRDS])
    assert one.seen == [BIRDS, BIRDS]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template(text=None), "the text is None; expected words"),
        (Template(text=" \n"), r"the text is ' \\n'; expected words"),
        (Template(keys=("one", "two", "same")), "keys are tuple; expected AnswerKeys"),
        (Template(text=map("{}".format, itertools.count()).__next__), "the text is another when rendered again"),
        (
            Template(keys=(AnswerKeys((str(n),), str(n)) for n in itertools.count()).__next__),
            "the keys are others when asked again",
        ),
        (Template(text='Answer with "one" and "same".'), 'does not name "two" after the keys before it'),
        (Template(text='Answer with "two", "one" and "same".'), 'does not name "two" after the keys before it'),
        (Template(text=f"{TEXT}<|im_end|>"), r"the text holds the special token <\|im_end\|>"),
        (Template(text=f"<IMG_CONTEXT>{TEXT}"), "the text holds the special token <IMG_CONTEXT>"),
        (Template(text=f"{TEXT}\ud800"), "the text holds a lone surrogate"),
        (Template(text=f"<image b> {TEXT}"), "images_first: the prompt does not show image a and image b once each"),
    ],
)
def test_a_broken_contract_is_told(template: Template, message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_prompt_template(template, vocabularies=[STANDIN_BIRDS])
    assert str(caught.value).startswith("vocabulary of birds")
