"""Chunks of completions in replay: how they are made, and that they change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from workers.replay_reference import Reference, assert_attention, assert_gradients
from workers.replay_world import (
    LENGTHS,
    REWARDS,
    World,
    record_of,
    relative_error,
    replayed_gradients,
    worker_of,
)

from saga_dist.models.families import decoder
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.types import (
    ReplayTask,
    ScoredGroup,
)
from saga_dist.workers import replay, replay_chunks


@pytest.mark.parametrize(("completions", "logits"), [(1, 1024), (2, 7), (5, 1)])
def test_chunks_change_nothing(deep_world: World, deep_reference: Reference, completions: int, logits: int) -> None:
    results, tower = replayed_gradients(deep_world, completions_per_chunk=completions, logits_chunk=logits)
    assert_gradients(results, tower, deep_reference, levels=2)
    assert_attention(results, deep_reference)


def test_completions_of_very_different_lengths_run_apart_and_change_nothing(
    deep_world: World, deep_reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "find_backend", lambda *_: None)
    monkeypatch.setattr(replay_chunks, "MAX_PADDING", 2)
    assert replay_chunks.padded_chunks(LENGTHS, 8, 99) == [[1, 4], [2], [0], [3]]
    assert replay_chunks.padded_chunks((3, 3, 2, 3, 3), 2, 99) == [[0, 1], [3, 4], [2]]
    assert replay_chunks.padded_chunks((3, 4, 2, 4, 12), 8, 8) == [[4], [1, 3], [0, 2]]
    results, tower = replayed_gradients(deep_world)
    assert_gradients(results, tower, deep_reference, levels=2)
    assert_attention(results, deep_reference)


def test_packed_chunks_hold_so_many_completions_and_so_many_tokens(
    deep_world: World, deep_reference: Reference
) -> None:
    assert replay_chunks.packed_chunks((3, 3, 4, 11, 1, 1, 1), 2, 10) == [[0, 1], [2], [3], [4, 5], [6]]
    assert replay_chunks.packed_chunks(LENGTHS, 8, 10) == [[0], [1], [2, 3], [4]]
    group = deep_world.groups()[0]
    worker = worker_of(deep_world, tokens_per_chunk=10)
    prompt = worker._prompt._layout(((1, 10, 10), (1, 10, 10)))
    assert [chunk.lengths for chunk in worker._chunks(group, prompt)] == [(5,), (11,), (8, 1), (9,)]
    results, tower = replayed_gradients(deep_world, tokens_per_chunk=10)
    assert_gradients(results, tower, deep_reference, levels=2)


def _with_copies(group: ScoredGroup) -> ScoredGroup:
    """Completion 1 becomes completion 0's twin and 4 that of 2: same tokens, same verdict; others differ."""
    twins = (0, 0, 2, 3, 2)

    def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[twin] for twin in twins)

    completions = replace(
        group.completions,
        token_ids=pick(group.completions.token_ids),
        log_probs=tuple(np.full(LENGTHS[twin], -0.1 * row, np.float32) for row, twin in enumerate(twins)),
    )
    rewards_G = np.array(REWARDS, np.float32)[list(twins)]
    return replace(
        group,
        completions=completions,
        verdicts=pick(group.verdicts),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=np.array((0.5, -1.0, 0.25, 2.0, 1.5), np.float32),
        describes_a=pick(group.describes_a),
        describes_b=pick(group.describes_b),
    )


@pytest.mark.parametrize("truncate_at", [None, 1.05])
def test_equal_completions_are_read_once_and_count_each(
    deep_world: World, monkeypatch: pytest.MonkeyPatch, layout: str, truncate_at: float | None
) -> None:
    """Against the same worker made to read every completion; copies differ in advantage and engine log-probability."""
    group = _with_copies(deep_world.groups()[0])
    tower = deep_world.family.load_tower()
    pixels = tower.preprocess(deep_world.pairs[0])
    record = record_of(group, pixels, tower(pixels), tower.layout.num_deepstack)
    task = ReplayTask(group, record, 100, True, truncate_at=truncate_at)
    read: list[int] = []
    forward_packed = DecoderBackbone.forward_packed

    def counted(self: DecoderBackbone, past: Any, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(len(sequences))
        return forward_packed(self, past, sequences, *args, **kwargs)

    monkeypatch.setattr(DecoderBackbone, "forward_packed", counted)
    found = worker_of(deep_world, logits_chunk=7).replay(task, record)
    assert sum(read) == 3
    monkeypatch.setattr(replay, "distinct_completions", lambda token_ids: [[index] for index in range(len(token_ids))])
    expected = worker_of(deep_world, logits_chunk=7).replay(task, record)
    assert sum(read) == 3 + 5
    assert relative_error(found.values_NW, expected.values_NW) <= 1e-5
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.num_attended == expected.num_attended == 4
    torch.testing.assert_close(found.attention_a_N, expected.attention_a_N, rtol=1e-5, atol=1e-7)
    assert found.mismatch.log_prob_gap == pytest.approx(expected.mismatch.log_prob_gap, rel=1e-5)
    assert found.mismatch.weight_quantiles == pytest.approx(expected.mismatch.weight_quantiles, rel=1e-5)
