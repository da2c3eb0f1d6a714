"""The reward, an extension point: a function of one completion, set by name or import path (``objective.reward``)."""

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
    """Reward, any number that is finite in float32; advantages are computed from the rewards of a group."""
    is_correct: bool
    """True when the completion is correct; only correct completions give attention targets for L_KL."""


class RewardFn(Protocol):
    """A reward: a pure function, called in the process of the rollout worker.

    Equal arguments must give equal results, because a retried group is scored again. The text is untrusted output of a
    model: the function must return a result for every string, in time about linear in its length.
    ``saga_dist.testing.check_reward`` checks this.
    """

    def __call__(self, text: str, pair: ImagePair, prompt: PromptSpec) -> tuple[float, bool]:
        """Returns value and correctness of one completion, as ``RewardResult`` or as a plain tuple.

        Args:
            text: the completion, decoded without special tokens.
            pair: the pair, with its labels; ``pair.same`` is the right verdict.
            prompt: the prompt, with its vocabulary and the JSON keys of the answer.
        """


@dataclass(frozen=True, slots=True)
class CheckedReward:
    """A user's reward whose results are checked."""

    name: str
    """Import path of the reward, for error messages."""
    function: RewardFn
    """The user's function."""

    def __call__(self, text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
        """Returns the result of the reward.

        Raises:
            ConfigError: the reward raised, or its result is not a finite number with a bool; the error names reward and
                pair.
        """
        where = f"objective.reward = {self.name!r}, pair {pair.pair_id}"
        try:
            result = self.function(text, pair, prompt)
        except Exception as error:  # handled here: a reward that raises for a text would raise on every worker
            what = f"raised {one_line(error)}"
            raise ConfigError(what, where=where, expected="a result for every text", fix=_FIX) from error
        if not _is_result(result):
            expected = "(value, is_correct), a finite number and a bool"
            raise ConfigError(f"returned {_shortened(result)}", where=where, expected=expected, fix=_FIX)
        value, is_correct = result
        return RewardResult(float(value), bool(is_correct))


def score_verdict(text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
    """Returns (1, True) when the verdict of ``text`` agrees with the labels, else (0, False)."""
    value = verdict_reward(parse_verdict(text, prompt.verdict_key), pair.same)
    return RewardResult(value, value == 1)


def load_reward(name: str) -> RewardFn:
    """Returns a reward; the results of a user's reward are checked.

    Args:
        name: name of a built-in reward, or import path (``objective.reward``).

    Raises:
        ConfigError: the name is unknown, cannot be imported in this process, or is not callable.
    """
    reward: RewardFn = REWARDS.load(name)
    if not callable(reward):
        raise ConfigError(
            f"{name!r} is {type(reward).__name__}", where=REWARDS.key, expected="a function (text, pair, prompt)"
        )
    return reward if name in REWARDS.builtin else CheckedReward(name, reward)


def _is_result(result: object) -> bool:
    """Returns True for a pair of a number that is finite in float32 and a bool."""
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
    """Returns at most 80 characters of an object's representation, in one line."""
    text = " ".join(repr(result).split())
    return text if len(text) <= 80 else f"{text[:80]}…"
