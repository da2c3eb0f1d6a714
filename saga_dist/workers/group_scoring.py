"""Scores of sampled groups: verdicts, rewards, advantages, and the tokens that describe each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saga_dist.data.prompts import PromptSpec
from saga_dist.objectives.advantage import group_advantages
from saga_dist.objectives.reward import parse_verdict
from saga_dist.objectives.reward_fn import RewardFn
from saga_dist.objectives.spans import description_spans, token_masks, token_offsets_from_decode
from saga_dist.types import Completions, ImagePair, ScoredGroup


class GroupScorer:
    """Scores the completions of a pair.

    Args:
        tokenizer: the tokenizer of the MLLM.
        prompt: the comparison prompt of the engine; it has the JSON keys of the answer.
        reward: scores each distinct completion of a pair.
        advantage_epsilon: added to the standard deviation of a group's rewards.
    """

    def __init__(self, tokenizer: Any, prompt: PromptSpec, reward: RewardFn, advantage_epsilon: float) -> None:
        self._tokenizer, self._prompt, self._reward = tokenizer, prompt, reward
        self._advantage_epsilon = advantage_epsilon

    def score(self, pair: ImagePair, completions: Completions) -> ScoredGroup:
        """Returns the group with verdicts, rewards, advantages and the tokens that describe each image.

        Args:
            pair: the pair.
            completions: its sampled completions.

        Raises:
            ConfigError: a user's reward function raised, or returned something that is not a reward.
        """
        # Completions of a group are often equal, so each distinct one is parsed and scored once.
        result_of = {text: self._reward(text, pair, self._prompt) for text in dict.fromkeys(completions.texts)}
        verdict_of = {text: parse_verdict(text, self._prompt.verdict_key) for text in result_of}
        values, is_correct = zip(*(result_of[text] for text in completions.texts), strict=True)
        rewards_G = torch.tensor(values, dtype=torch.float32)
        distinct = dict(zip(completions.token_ids, completions.texts, strict=True))
        masks_of = {ids: self._masks(text, ids) for ids, text in distinct.items()}
        masks = [masks_of[ids] for ids in completions.token_ids]
        return ScoredGroup(
            pair=pair,
            completions=completions,
            verdicts=tuple(verdict_of[text] for text in completions.texts),
            rewards_G=rewards_G.numpy(),
            is_correct_G=np.array(is_correct, dtype=bool),
            advantages_G=self._advantages(rewards_G),
            describes_a=tuple(mask_a for mask_a, _ in masks),
            describes_b=tuple(mask_b for _, mask_b in masks),
        )

    def _advantages(self, rewards_G: torch.Tensor) -> np.ndarray:
        """Returns float32 [G]; 0 for a single completion (evaluation), which has no group to be compared with."""
        if len(rewards_G) == 1:
            return np.zeros(1, dtype=np.float32)
        return group_advantages(rewards_G, self._advantage_epsilon).advantages.numpy()

    def _masks(self, text: str, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool [T] for image a and for image b, True for its description; all False without a description."""
        if not self._prompt.describes_images:
            return np.zeros(len(token_ids), dtype=bool), np.zeros(len(token_ids), dtype=bool)
        prompt = self._prompt
        spans = description_spans(text, prompt.key_a, prompt.key_b, verdict_key=prompt.verdict_key, keys=prompt.keys)
        offsets_T2 = token_offsets_from_decode(self._tokenizer, token_ids)
        mask_a, mask_b = (token_masks(offsets_T2, span).numpy() for span in spans)
        return mask_a, mask_b
