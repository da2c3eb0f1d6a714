"""Rewards by name and import path: the built-in one, results that are refused, and names that are wrong."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.errors import ConfigError
from saga_dist.objectives.reward_fn import CheckedReward, RewardResult, load_reward, score_verdict
from saga_dist.types import ImagePair

PROMPT = PromptSpec(STANDIN_BIRDS)
SAME, DIFFERENT = ImagePair("p0", 0, 1, 7, 7), ImagePair("p1", 0, 1, 7, 8)


def letters(text: str, pair: ImagePair, prompt: PromptSpec) -> tuple[float, bool]:
    """A reward of one's own: tests import it by its path."""
    return len(text) / 10, text.endswith(prompt.verdict_key)


@pytest.mark.parametrize(
    ("verdict", "pair", "expected"),
    [
        ("yes", SAME, (1.0, True)),
        ("no", SAME, (0.0, False)),
        ("yes", DIFFERENT, (0.0, False)),
        ("no", DIFFERENT, (1.0, True)),
        ("perhaps", SAME, (0.0, False)),
        ("perhaps", DIFFERENT, (0.0, False)),
    ],
)
def test_the_built_in_reward_is_the_verdicts(verdict: str, pair: ImagePair, expected: tuple[float, bool]) -> None:
    result = load_reward("verdict")(f'{{"same_species": "{verdict}"}}', pair, PROMPT)
    assert result == expected
    assert type(result[1]) is bool


def test_the_built_in_reward_reads_the_prompts_own_key() -> None:
    text = '{"same_species": "yes", "same_model": "no"}'
    other = PromptSpec(replace(STANDIN_BIRDS, verdict_key="same_model"))
    assert score_verdict(text, SAME, PROMPT) == (1.0, True)
    assert score_verdict(text, SAME, other) == (0.0, False)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((0.25, True), RewardResult(0.25, True)),
        ((-3, False), RewardResult(-3.0, False)),
        ((np.float32(0.5), np.bool_(True)), RewardResult(0.5, True)),
        (RewardResult(1.0, False), RewardResult(1.0, False)),
    ],
)
def test_any_finite_number_and_a_bool_are_a_result(result: Any, expected: RewardResult) -> None:
    checked = CheckedReward("mine:reward", lambda text, pair, prompt: result)("", SAME, PROMPT)
    assert checked == expected
    assert (type(checked.value), type(checked.is_correct)) == (float, bool)


@pytest.mark.parametrize(
    "result",
    [
        0.5,
        None,
        (0.5,),
        (0.5, True, None),
        [0.5, True],
        (float("nan"), True),
        (float("inf"), True),
        (1e39, True),  # beyond float32
        (10**400, True),  # beyond float64
        ("1", True),
        (None, True),
        (0.5, 1),
        (0.5, "yes"),
        (0.5, None),
    ],
)
def test_any_other_result_is_one_line_with_reward_and_pair(result: Any) -> None:
    reward = CheckedReward("mine:reward", lambda text, pair, prompt: result)
    with pytest.raises(ConfigError, match=r"^objective.reward = 'mine:reward', pair p1: returned .*finite number") as e:
        reward("", DIFFERENT, PROMPT)
    assert "\n" not in str(e.value)


def test_a_reward_that_raises_is_one_line_with_reward_and_pair() -> None:
    def fails(text: str, pair: ImagePair, prompt: PromptSpec) -> tuple[float, bool]:
        raise KeyError("first line\nsecond line")

    with pytest.raises(ConfigError, match=r"'mine:fails', pair p0: raised KeyError: .*expected a result for") as caught:
        CheckedReward("mine:fails", fails)("", SAME, PROMPT)
    assert "\n" not in str(caught.value)


def test_a_long_result_is_cut() -> None:
    with pytest.raises(ConfigError, match=r"returned \('x+…; expected"):
        CheckedReward("mine:long", lambda text, pair, prompt: ("x" * 10_000, True))("", SAME, PROMPT)  # type: ignore[arg-type, return-value]


def test_a_reward_of_ones_own_by_its_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(letters=letters))
    reward = load_reward("mine:letters")
    assert reward("same_species", SAME, PROMPT) == (1.2, True)
    assert reward("", SAME, PROMPT) == (0.0, False)


def test_what_is_no_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(three=3))
    with pytest.raises(ConfigError, match=r"objective.reward: 'mine:three' is int; expected a function"):
        load_reward("mine:three")
    with pytest.raises(ConfigError, match=r"unknown reward 'verdikt'; expected one of verdict, or package.module:obj"):
        load_reward("verdikt")
