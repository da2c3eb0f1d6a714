"""Selection follows submission, never arrival; statistics are counted by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from saga_dist.errors import TrainingError
from saga_dist.training.rollout_buffer import RolloutBuffer, submission_order
from saga_dist.types import Completions, ImagePair, Sampling, ScoredGroup

VALID = '{"same_species": "yes"}'


def make_group(
    pair_id: str,
    verdicts: Sequence[bool | None],
    *,
    same: bool = True,
    lengths: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    reasons: Sequence[str] | None = None,
) -> ScoredGroup:
    num = len(verdicts)
    lengths = lengths or [1] * num
    rewards = np.array([verdict == same for verdict in verdicts], np.float32)
    return ScoredGroup(
        pair=ImagePair(pair_id, 0, 1, 5, 5 if same else 6),
        completions=Completions(
            pair_id=pair_id,
            token_ids=tuple(tuple(range(length)) for length in lengths),
            texts=tuple(texts or [VALID] * num),
            log_probs=tuple(np.zeros(length, np.float32) for length in lengths),
            finish_reasons=tuple(reasons or ["stop"] * num),
            sampling=Sampling(num, 0.7, 0.95, 16, 0),
            encoder_version=0,
        ),
        verdicts=tuple(verdicts),
        rewards_G=rewards,
        is_correct_G=rewards == 1,
        advantages_G=rewards - rewards.mean(),
        describes_a=tuple(np.zeros(length, bool) for length in lengths),
        describes_b=tuple(np.zeros(length, bool) for length in lengths),
    )


def ids(groups: Sequence[ScoredGroup]) -> list[str]:
    return [group.pair.pair_id for group in groups]


def test_pair_ids_are_ordered_by_their_numbers() -> None:
    shuffled = ["s000001.m10.p00", "s000001.m2.p100", "s000001.m2.p99", "s000001.m2.p03", "s000000.m11.p00"]
    assert sorted(shuffled, key=submission_order) == [
        "s000000.m11.p00",
        "s000001.m2.p03",
        "s000001.m2.p99",
        "s000001.m2.p100",
        "s000001.m10.p00",
    ]


def test_any_order_of_arrival_gives_the_same_selection_tokens_and_metrics() -> None:
    groups = [
        make_group("s0.m0.p00", [True, True]),
        make_group("s0.m0.p01", [True, False], lengths=[3, 4]),
        make_group("s0.m0.p02", [False, True], lengths=[5, 6], same=False),
        make_group("s0.m1.p00", [None, True], lengths=[7, 8]),
    ]
    seen = []
    for order in itertools.permutations(groups):
        buffer = RolloutBuffer(2)
        for group in order:
            buffer.add(group)
        assert ids(buffer.groups) == ids(groups)
        assert ids(buffer.selected()) == ["s0.m0.p01", "s0.m0.p02"]
        assert buffer.num_tokens == 3 + 4 + 5 + 6
        seen.append(buffer.metrics())
    assert all(metrics == seen[0] for metrics in seen)


def test_full_counts_contributing_groups_only() -> None:
    buffer = RolloutBuffer(2)
    for number in range(5):
        buffer.add(make_group(f"s0.m0.p{number:02d}", [True, True]))
    assert not buffer.full
    assert buffer.selected() == []
    assert buffer.num_tokens == 0
    buffer.add(make_group("s0.m1.p00", [True, False]))
    assert not buffer.full
    buffer.add(make_group("s0.m1.p01", [True, False]))
    assert buffer.full
    buffer.add(make_group("s0.m1.p02", [True, False]))
    assert buffer.full
    assert len(buffer.selected()) == 2
    assert len(buffer) == 8


def test_a_pair_that_comes_twice_is_dropped_and_counted() -> None:
    buffer = RolloutBuffer(1)
    first = make_group("s0.m0.p00", [True, False])
    assert buffer.add(first)
    assert not buffer.add(make_group("s0.m0.p00", [True, True]))
    assert buffer.groups == [first]
    assert buffer.metrics()["rollout/duplicates"] == 1


def test_metrics_by_hand() -> None:
    buffer = RolloutBuffer(1)
    buffer.add(
        make_group(
            "s0.m0.p00",
            [True, True, False, None],
            same=True,
            lengths=[1, 2, 3, 4],
            texts=[VALID, f"```json\n{VALID}\n```", "no JSON", VALID[:-1]],
            reasons=["stop", "stop", "stop", "length"],
        )
    )
    buffer.add(make_group("s0.m0.p01", [False, False, False, False], same=False))
    buffer.add(make_group("s0.m0.p02", [True, False, True, True], same=False))
    assert buffer.metrics() == pytest.approx(
        {
            "rollout/groups": 3,
            "rollout/duplicates": 0,
            "rollout/contributing_share": 2 / 3,
            "rollout/contributing_same": 1,
            "rollout/contributing_different": 1,
            "rollout/selected": 1,
            "rollout/reward_mean": (2 + 4 + 1) / 12,
            "rollout/unparseable_share": 1 / 12,
            "rollout/json_valid_share": 10 / 12,
            "rollout/tokens": 18,
            "rollout/completion_tokens_mean": 18 / 12,
            "rollout/truncated_share": 1 / 12,
            "rollout/verdict_accuracy_same": 2 / 4,
            "rollout/verdict_accuracy_different": 5 / 8,
        }
    )


def test_a_quantity_without_groups_is_left_out() -> None:
    assert RolloutBuffer(1).metrics() == {"rollout/groups": 0, "rollout/duplicates": 0}
    buffer = RolloutBuffer(1)
    buffer.add(make_group("s0.m0.p00", [True, False], same=True))
    assert "rollout/verdict_accuracy_different" not in buffer.metrics()
    assert buffer.metrics()["rollout/verdict_accuracy_same"] == 0.5


def test_a_buffer_needs_room() -> None:
    with pytest.raises(TrainingError, match="buffer of 0 groups; expected at least 1"):
        RolloutBuffer(0)
