"""Example of a reward with partial credit: 1 for the right verdict, 0.2 for an answer in exactly the requested form.

When all completions of a group have the right verdict, the paper's reward gives no gradient; this reward still prefers
well-formed answers. A completion is correct when its verdict is right, so that attention targets are the paper's.

    cd docs/examples
    saga-dist train ../../configs/birds.toml objective.reward=own_reward:partial_credit --dry-run

On a cluster, `ray job submit --working-dir docs/examples -- saga-dist train …` sends the module along.
"""

from __future__ import annotations

from saga_dist.data.prompts import PromptSpec
from saga_dist.objectives.reward import json_is_valid, parse_verdict
from saga_dist.objectives.reward_fn import RewardResult
from saga_dist.types import ImagePair

FORMAT_CREDIT = 0.2
"""Reward of a well-formed answer, whatever its verdict."""


def partial_credit(text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
    """Returns 1 for the right verdict plus ``FORMAT_CREDIT`` for a well-formed answer: all keys and no other text.

    Args:
        text: the completion, untrusted.
        pair: the pair that was judged.
        prompt: the prompt, which has the keys of the answer.
    """
    is_correct = parse_verdict(text, prompt.verdict_key) == pair.same
    well_formed = json_is_valid(text, prompt.keys)
    return RewardResult(value=is_correct + FORMAT_CREDIT * well_formed, is_correct=is_correct)
