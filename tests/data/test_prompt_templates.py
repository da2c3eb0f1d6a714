"""Prompt templates of one's own: what a prompt takes from them, and mistakes in them."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from saga_dist.config import parse_config
from saga_dist.data.prompt_templates import GENERIC, STRUCTURED, AnswerKeys, load_template
from saga_dist.data.prompts import ChatFormat, PromptSpec, render_prompt
from saga_dist.data.vocabularies import BIRDS, STANDIN_BIRDS, Vocabulary
from saga_dist.errors import ConfigError
from saga_dist.runtime.build import build_prompt

CHAT = ChatFormat("<u>", "</u>")


class Verdict:
    """Asks for the verdict first, then for both descriptions."""

    def render(self, vocabulary: Vocabulary) -> str:
        return f"The {vocabulary.verdict_question}? {', '.join(vocabulary.attributes)}"

    def answer_keys(self, vocabulary: Vocabulary) -> AnswerKeys:
        return AnswerKeys(("same", "left", "right"), verdict_key="same", key_a="left", key_b="right")


def raises(vocabulary: Vocabulary) -> Any:
    raise ValueError("first line\nsecond line")


def template(**methods: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"render": Verdict().render, "answer_keys": Verdict().answer_keys, **methods})


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module of a user's own, ``mine``."""
    module = SimpleNamespace(
        verdict=Verdict(),
        Verdict=Verdict,
        silent=template(answer_keys=lambda words: AnswerKeys(("same",), "same")),
        no_render=SimpleNamespace(answer_keys=Verdict().answer_keys),
        keys_raise=template(answer_keys=raises),
        keys_tuple=template(answer_keys=lambda words: ("same",)),
        wrong_keys=template(answer_keys=lambda words: AnswerKeys(("same",), "verdict")),
        render_raises=template(render=raises),
        number=template(render=lambda words: 3),
        blank=template(render=lambda words: " \n"),
        shows=template(render=lambda words: "Look at <A> and <B>"),
    )
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def render(spec: PromptSpec) -> str:
    return render_prompt(spec, image_a="<A>", image_b="<B>", chat=CHAT)


@pytest.mark.usefixtures("mine")
def test_a_template_of_ones_own_gives_text_and_keys() -> None:
    spec = PromptSpec(STANDIN_BIRDS, variant="mine:verdict")
    assert spec.keys == ("same", "left", "right")
    assert (spec.verdict_key, spec.key_a, spec.key_b) == ("same", "left", "right")
    assert spec.describes_images
    text = "The same species? bill, crown, breast, wing, tail, legs"
    assert render(spec) == f"<u>Bird 1: <A>\nBird 2: <B>\n{text}</u>"
    assert render(replace(spec, order="text_first")) == f"<u>{text}\nBird 1: <A>\nBird 2: <B></u>"
    assert replace(spec, variant="generic").keys == ("differences", "reasoning", "same_species")


def test_names_stand_for_the_built_in_templates() -> None:
    assert load_template("structured") is STRUCTURED
    assert load_template("generic") is GENERIC
    assert STRUCTURED.answer_keys(BIRDS).describes_images
    assert not GENERIC.answer_keys(BIRDS).describes_images


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:Verdict", "prompt.variant: 'mine:Verdict' is a class; name an object"),
        ("mine:no_render", "prompt.variant: 'mine:no_render' has no method render; expected render"),
        ("mine:nothing", "'mine:nothing': mine has no 'nothing'"),
        ("mine:keys_raise", "prompt.variant: 'mine:keys_raise' raised ValueError: first line second line"),
        ("mine:keys_tuple", "answer_keys of 'mine:keys_tuple' returned tuple; expected AnswerKeys"),
        ("mine:wrong_keys", "prompt.variant, answer_keys: 'verdict' is not among the keys"),
        ("mine:render_raises", "prompt.variant: 'mine:render_raises' raised ValueError: first line second line"),
        ("mine:number", "render of 'mine:number' returned 3; expected text"),
        ("mine:blank", "render of 'mine:blank' returned ' \\\\n'; expected text"),
        ("mine:shows", "render of 'mine:shows' returned 'Look at <A> and <B>'; expected text, without the images"),
    ],
)
def test_mistakes_in_a_template_of_ones_own_are_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        render(PromptSpec(STANDIN_BIRDS, variant=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "a"), "a"), "each key once"),
        (("same", "same"), "a tuple of non-empty strings"),
        ((("a", ""), "a"), "non-empty"),
        ((("a", 1), "a"), "non-empty strings"),
        ((("a", "b"), "c"), "'c' is not among the keys"),
        ((("a", "b"), ""), "'' is not among the keys"),
        ((("a", "b", "v"), "v", "a"), "two keys, or none for both"),
        ((("a", "b", "v"), "v", "a", "a"), "two keys, or none for both"),
        ((("a", "v"), "v", "a", "b"), "'b' is not among the keys"),
    ],
)
def test_keys_that_do_not_fit_together(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnswerKeys(*arguments)


def test_attention_targets_need_a_template_that_describes(mine: SimpleNamespace) -> None:
    def prompt(name: str, lambda_kl: float) -> PromptSpec:
        tree = {"data": {"layout": "birds", "image_size": 80}, "prompt": {"variant": name}}
        return build_prompt(parse_config({**tree, "objective": {"lambda_kl": lambda_kl}}, where="test"))

    assert prompt("mine:verdict", 1.0).template is mine.verdict
    assert not prompt("mine:silent", 0.0).describes_images
    with pytest.raises(ConfigError, match=r"lambda_kl > 0 with prompt.variant = \"mine:silent\": its answer describes"):
        prompt("mine:silent", 1.0)
