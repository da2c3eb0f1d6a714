"""Attention targets of replay: those of eager attention, of correct completions only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from workers.replay_reference import Reference, assert_attention
from workers.replay_world import (
    LENGTHS,
    World,
    record_of,
    replayed_gradients,
    worker_of,
)

from saga_dist.types import (
    ReplayTask,
    TokenGradients,
)


def test_attention_targets_are_those_of_eager_attention(deep_world: World, deep_reference: Reference) -> None:
    results, _ = replayed_gradients(deep_world)
    assert_attention(results, deep_reference)
    assert results[0].attention_a_N.sum().item() == pytest.approx(1, abs=1e-6)


def test_targets_are_of_correct_completions_whatever_their_reward(deep_world: World) -> None:
    worker, tower = worker_of(deep_world), deep_world.family.load_tower()
    group, pixels = deep_world.groups()[0], tower.preprocess(deep_world.pairs[0])
    record = record_of(group, pixels, tower(pixels), tower.layout.num_deepstack)

    def replayed(**changes: Any) -> TokenGradients:
        task = ReplayTask(replace(group, **changes), record, group.num_tokens, want_attention=True)
        return worker.replay(task, record)

    by_reward, partial_credit = replayed(), replayed(rewards_G=np.array([0.3, 1, -2, 0, 7], np.float32))
    assert partial_credit.num_attended == by_reward.num_attended > 1
    assert torch.equal(partial_credit.attention_a_N, by_reward.attention_a_N)
    one = replayed(is_correct_G=np.arange(len(LENGTHS)) == int(np.flatnonzero(group.is_correct_G)[0]))
    assert one.num_attended == 1
    assert not torch.allclose(one.attention_a_N, by_reward.attention_a_N)
    none = replayed(is_correct_G=np.zeros(len(LENGTHS), bool))
    assert (none.num_attended, none.attention_a_N, none.attention_b_N) == (0, None, None)
    assert torch.equal(none.values_NW, by_reward.values_NW), "the policy gradient knows advantages only"


def test_no_attention_is_read_unless_wanted(deep_world: World) -> None:
    results, _ = replayed_gradients(deep_world, want_attention=False)
    assert all(result.attention_a_N is None and result.attention_b_N is None for result in results)
    assert all(result.num_attended == 0 for result in results)
