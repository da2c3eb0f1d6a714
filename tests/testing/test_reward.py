"""The contract of rewards: the built-in one keeps it, and every way to break it is told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from saga_dist.config.registries import REWARDS
from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import CARS, STANDIN_BIRDS
from saga_dist.objectives.reward_fn import load_reward
from saga_dist.testing import check_reward
from saga_dist.testing.reward import plausible_texts


@pytest.mark.integration
@pytest.mark.parametrize("name", REWARDS.builtin)
@pytest.mark.parametrize(
    "prompt", [PromptSpec(STANDIN_BIRDS), PromptSpec(CARS, variant="generic")], ids=["structured", "generic"]
)
def test_built_in_rewards_keep_the_contract(name: str, prompt: PromptSpec) -> None:
    check_reward(load_reward(name), prompt=prompt)


def test_plausible_texts_are_answers_to_the_prompt() -> None:
    prompt = PromptSpec(STANDIN_BIRDS)
    texts = plausible_texts(prompt)
    assert json.loads(texts["the answer yes"])["same_species"] == "yes"
    assert tuple(json.loads(texts["the answer no"])) == prompt.keys
    assert json.loads(texts["the answer no"])["bird_2"] == dict.fromkeys(STANDIN_BIRDS.attribute_keys, "red")


def counts() -> Callable[..., tuple[float, bool]]:
    numbers = itertools.count()
    return lambda text, pair, prompt: (float(next(numbers)), False)


def quadratic(text: str, pair: Any, prompt: Any) -> tuple[float, bool]:
    """Every character is compared with every other one."""
    return float(sum(one == other for one in text for other in text)) / max(1, len(text)) ** 2, False


@pytest.mark.integration
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda text, pair, prompt: 0.5, "returned 0.5; expected"),
        (lambda text, pair, prompt: (0.5, 1), r"returned \(0.5, 1\); expected"),
        (lambda text, pair, prompt: (1 / len(text), True), "an empty text: .*raised ZeroDivisionError"),
        (lambda text, pair, prompt: (float(len(json.loads(text))), True), "fenced answer: .*raised JSONDecodeError"),
        (lambda text, pair, prompt: (float(len(text.encode())), True), "surrogate: .*raised UnicodeEncodeError"),
        (lambda text, pair, prompt: (1e39 if text else 0.0, True), r"returned \(1e\+39, True\)"),
        (lambda text, pair, prompt: (float("nan"), pair.same), r"returned \(nan, True\)"),
        (counts(), r"expected equal results for equal arguments"),
        (quadratic, "quadratic: .* s for .* characters of a letter, .* s for a sixteenth of them; expected time about"),
    ],
)
def test_a_broken_contract_is_told(reward: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_reward(reward)
