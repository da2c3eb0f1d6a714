"""Contract check of rewards (``objectives.reward_fn.RewardFn``)."""

from __future__ import annotations

import json
import time

from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.errors import ConfigError
from saga_dist.objectives.reward_fn import CheckedReward, RewardFn, RewardResult
from saga_dist.testing.require import require
from saga_dist.types import ImagePair

PAIRS = (ImagePair("same", 0, 1, 7, 7), ImagePair("different", 0, 1, 7, 8))
"""A same-class and a different-class pair."""
LONGEST = 2**20
"""Length of the longest test text, characters; far more than any ``rollout.max_tokens`` gives."""
LARGEST_GROWTH = 80.0
"""Largest factor on the time for a text 16 times as long.

A linear reward has 16, on a busy machine up to 40, because long texts leave the caches; a quadratic one has 256."""
FAST_ENOUGH_S = 0.25
"""Time, seconds, up to which times are not compared, because they are dominated by noise."""


def check_reward(reward: RewardFn, *, prompt: PromptSpec | None = None) -> None:
    """Checks that a reward returns a valid result for every text, the same on every call, in roughly linear time.

    The texts are plausible answers and hostile ones: empty, truncated, deeply nested, with lone surrogates, or of a
    million characters.

    Args:
        reward: a function (text, pair, prompt) -> (value, is_correct).
        prompt: prompt that the reward is made for; None: the structured prompt of the built-in birds.

    Raises:
        AssertionError: a result is wrong or too slow; the message names the kind of text and the reason.
    """
    prompt = prompt or PromptSpec(STANDIN_BIRDS)
    name = getattr(reward, "__qualname__", type(reward).__name__)
    checked = CheckedReward(name, reward)
    _check_results(checked, plausible_texts(prompt), prompt)
    for kind, pattern in _LONG_PATTERNS.items():
        _check_time(checked, kind, pattern, prompt)
    _check_results(checked, hostile_texts(prompt), prompt)


def plausible_texts(prompt: PromptSpec) -> dict[str, str]:
    """Returns texts as the MLLM generates them, by the kind of text."""
    described = dict.fromkeys(prompt.vocabulary.attribute_keys, "red")

    def answer(verdict: object) -> str:
        values = {prompt.key_a: described, prompt.key_b: described, prompt.verdict_key: verdict}
        return json.dumps({key: values.get(key, "some words") for key in prompt.keys})

    yes, no = answer("yes"), answer("no")
    return {
        "the answer yes": yes,
        "the answer no": no,
        "a fenced answer": f"```json\n{yes}\n```",
        "an answer with chatter around it": f"Sure! {no} Anything else?",
        "an answer that was cut off": yes[: len(yes) // 2],
        "two answers": yes + no,
        "a verdict that is neither yes nor no": answer("perhaps"),
        "a verdict that is null": answer(None),
        "a verdict that is a number": answer(1),
        "a verdict that is a list": answer(["yes"]),
        "a verdict that is an object": answer({"yes": "no"}),
    }


def hostile_texts(prompt: PromptSpec) -> dict[str, str]:
    """Returns texts that are not answers, by the kind of text."""
    key = json.dumps(prompt.verdict_key)
    return {
        "an empty text": "",
        "a blank text": " \t\r\n\u2028",
        "prose": "I think that both are the same.",
        "a lone surrogate": f'\ud800{{{key}: "yes\udfff"}}',
        "control characters": "".join(map(chr, range(32))) + "\x7f\x1b[31m",
        "special tokens": "<|image_pad|><|im_end|>",
        "a JSON number": "1e999",
        "a JSON list": f'[{key}, "yes"]',
        "a key without a value": f"{{{key}:",
        "an unclosed string": f'{{{key}: "yes',
        "brackets nested 100,000 deep": "[" * 100_000,
        "objects nested 50,000 deep": '{"a":' * 50_000,
    }


_LONG_PATTERNS = {
    "a letter": "x",
    "opening braces": "{",
    "quotes": '"',
    "backslashes": "\\",
    "white space": " ",
    "keys without values": '{"a" ',
    "members": '"a": "b", ',
    "objects": '{"a": "b"} ',
}


def _check_results(reward: CheckedReward, texts: dict[str, str], prompt: PromptSpec) -> None:
    """Checks that every text has a valid result, and the same one when the texts come in another order."""
    for pair in PAIRS:
        first = {kind: _result(reward, kind, text, pair, prompt) for kind, text in texts.items()}
        for kind, text in reversed(texts.items()):
            again = _result(reward, kind, text, pair, prompt)
            require(
                again == first[kind],
                f"{reward.name}: {kind}, pair of {pair.pair_id} classes: {tuple(first[kind])} at first, then "
                f"{tuple(again)}; expected equal results for equal arguments",
            )


def _result(reward: CheckedReward, kind: str, text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
    try:
        return reward(text, pair, prompt)
    except ConfigError as error:
        raise AssertionError(f"{kind}: {error}") from error


def _check_time(reward: CheckedReward, kind: str, pattern: str, prompt: PromptSpec) -> None:
    """Checks the time for texts of 256 to a million characters, each 16 times as long as another."""

    def seconds(length: int) -> float:
        text = _repeated(pattern, length)
        started = time.process_time()
        _result(reward, f"{length:,} characters of {kind}", text, PAIRS[0], prompt)
        return time.process_time() - started

    times = {length: seconds(length) for length in (LONGEST // 4**6, LONGEST // 4**5)}
    for length in (LONGEST // 4**power for power in reversed(range(5))):
        times[length] = after = seconds(length)
        if after > FAST_ENOUGH_S and after > LARGEST_GROWTH * times[length // 16]:
            # Measured again, the best of three each, because the machine may have been busy.
            before, after = (min(seconds(size) for _ in range(3)) for size in (length // 16, length))
            require(
                after <= LARGEST_GROWTH * before,
                f"{reward.name}: {after:.2f} s for {length:,} characters of {kind}, {before:.4f} s for a sixteenth of "
                "them; expected time about linear in the length",
            )


def _repeated(pattern: str, length: int) -> str:
    return (pattern * (length // len(pattern) + 1))[:length]
