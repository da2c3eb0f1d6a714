"""The example reward: values by hand, its contract, and a training with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.testing import check_reward
from saga_dist.types import ImagePair
from saga_dist.wire import read_recording


def test_values_by_hand(example: Callable[[str], ModuleType]) -> None:
    own, prompt, same = example("own_reward"), PromptSpec(STANDIN_BIRDS), ImagePair("p", 0, 1, 7, 7)
    whole = dict.fromkeys(prompt.keys, "red")
    right, wrong = (json.dumps({**whole, "same_species": verdict}) for verdict in ("yes", "no"))
    assert own.partial_credit(right, same, prompt) == (1.2, True)
    assert own.partial_credit(wrong, same, prompt) == (0.2, False)
    assert own.partial_credit(f"Well: {right}", same, prompt) == (1.0, True)
    assert own.partial_credit('{"same_species": "yes"}', same, prompt) == (1.0, True)
    assert own.partial_credit("", same, prompt) == (0.0, False)


@pytest.mark.integration
def test_the_contract(example: Callable[[str], ModuleType]) -> None:
    check_reward(example("own_reward").partial_credit)


@pytest.mark.integration
def test_two_steps_of_training(example: Callable[[str], ModuleType], dry_run_and_train: Callable[..., Path]) -> None:
    own, prompt = example("own_reward"), PromptSpec(STANDIN_BIRDS)
    run = dry_run_and_train("objective.reward=own_reward:partial_credit")
    groups = [group for step in range(2) for group in read_recording(run / "rollouts" / f"step_{step:06d}.arrow")]
    assert len(groups) == 8
    assert {float(value) for group in groups for value in group.rewards_G} > {np.float32(1.2)}
    for group in groups:
        results = [own.partial_credit(text, group.pair, prompt) for text in group.completions.texts]
        assert group.rewards_G.tolist() == [np.float32(result.value) for result in results]
        assert group.is_correct_G.tolist() == [result.is_correct for result in results]
        assert group.is_correct_G.tolist() == [verdict == group.pair.same for verdict in group.verdicts]
    assert any(group.contributes and group.replayed for group in groups), "it trained on what the reward told apart"
