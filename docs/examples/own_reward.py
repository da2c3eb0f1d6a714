"""A reward with partial credit: a right verdict counts 1, an answer that is exactly the JSON object asked for 0.2 more.

Within a group of completions that all have the right verdict, the paper's reward has no gradient; this one still
prefers the well-formed ones. Only the verdict makes a completion correct, so attention targets stay the paper's.

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


def partial_credit(text: str, pair: ImagePair, prompt: PromptSpec) -> RewardResult:
    """Returns 1 for the right verdict, plus ``FORMAT_CREDIT`` for an answer with all keys and nothing around it."""
    is_correct = parse_verdict(text, prompt.verdict_key) == pair.same
    well_formed = json_is_valid(text, prompt.keys)
    return RewardResult(value=is_correct + FORMAT_CREDIT * well_formed, is_correct=is_correct)
