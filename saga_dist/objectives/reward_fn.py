"""The reward as an extension point: a function of one completion, by name or import path (``objective.reward``)."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from saga_dist.config.registries import REWARDS
from saga_dist.errors import ConfigError
from saga_dist.objectives.reward import parse_verdict, verdict_reward
from saga_dist.utils.registry import one_line

if TYPE_CHECKING:
    from saga_dist.data.prompts import PromptSpec
    from saga_dist.types import ImagePair

_FIX = "try it with saga_dist.testing.check_reward"


class RewardResult(NamedTuple):
    """Score of one completion."""

    value: float
    """Any number that is finite in float32, partial credit included; advantages come from its spread in the group."""
    is_correct: bool
    """True where the completion is right: only such completions give attention targets to L_KL."""


class RewardFn(Protocol):
    """A reward: a pure function, called in the process of the rollout worker.

    Equal arguments must give equal results, because a retried group is scored again. The text is untrusted model output
    of any length: every string must get a result, in time about linear in its length.
    ``saga_dist.testing.check_reward`` checks this.
    """

    def __call__(self, text: str, pair: ImagePair, prompt: PromptSpec) -> tuple[float, bool]:
        """Returns value and correctness of one completion, as ``RewardResult`` or as a plain tuple.

        Args:
            text: the completion, decoded without special tokens.
            pair: the images' labels; ``pair.same`` is the right verdict.
            prompt: what was asked: its vocabulary, and the keys of the answer.
        """


@dataclass(frozen=True, slots=True)
class CheckedReward:
    """A reward whose results are checked where they come back.

    Args:
        name: of the reward, for messages.
        function: the reward.
    """

    name: str
    function: RewardFn

    def __call__(self, text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
        """Returns the result of the reward.

        Raises:
            ConfigError: the reward raised, or its result is no finite number with a bool; names reward and pair.
        """
        where = f"objective.reward = {self.name!r}, pair {pair.pair_id}"
        try:
            result = self.function(text, pair, prompt)
        except Exception as error:  # decided here: a reward that fails on one text would fail on it on any worker
            what = f"raised {one_line(error)}"
            raise ConfigError(what, where=where, expected="a result for every text", fix=_FIX) from error
        if not _is_result(result):
            expected = "(value, is_correct), a finite number and a bool"
            raise ConfigError(f"returned {_shortened(result)}", where=where, expected=expected, fix=_FIX)
        value, is_correct = result
        return RewardResult(float(value), bool(is_correct))


def score_verdict(text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
    """Returns value 1 and correct where the verdict of ``text`` agrees with the labels, else 0 and not correct."""
    value = verdict_reward(parse_verdict(text, prompt.verdict_key), pair.same)
    return RewardResult(value, value == 1)


def load_reward(name: str) -> RewardFn:
    """Returns the reward that ``objective.reward`` names; the results of one's own are checked.

    Raises:
        ConfigError: the name is unknown, this process cannot import it, or it is not callable.
    """
    reward: RewardFn = REWARDS.load(name)
    if not callable(reward):
        raise ConfigError(
            f"{name!r} is {type(reward).__name__}", where=REWARDS.key, expected="a function (text, pair, prompt)"
        )
    return reward if name in REWARDS.builtin else CheckedReward(name, reward)


def _is_result(result: object) -> bool:
    if not isinstance(result, tuple) or len(result) != 2:
        return False
    value, is_correct = result
    if not isinstance(value, numbers.Real) or not isinstance(is_correct, bool | np.bool_):
        return False
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(float(value))))
    except OverflowError:  # an integer beyond float64
        return False


def _shortened(result: object) -> str:
    text = " ".join(repr(result).split())
    return text if len(text) <= 80 else f"{text[:80]}…"
