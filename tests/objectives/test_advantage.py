from __future__ import annotations

import statistics

import pytest
import torch

from saga_dist.objectives.advantage import group_advantages


def test_five_of_eight_by_hand() -> None:
    advantages, contributes = group_advantages([1, 1, 1, 1, 1, 0, 0, 0], eps=1e-9)
    # mean 5/8; squared deviations 5 * (3/8)^2 + 3 * (5/8)^2 = 15/8; sample variance 15/56
    spread = (15 / 56) ** 0.5
    assert advantages.tolist() == pytest.approx([0.375 / spread] * 5 + [-0.625 / spread] * 3)
    assert bool(contributes)
    # the paper's figure shows +0.71 and -1.22; the population deviation would give +0.77 and -1.29
    assert advantages[0].item() == pytest.approx(0.71, abs=0.02)
    assert advantages[-1].item() == pytest.approx(-1.22, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_a_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_PG = torch.randint(0, 3, (40, 5), generator=generator).to(dtype)
    advantages_PG, contributes_P = group_advantages(rewards_PG, eps=0.1)
    assert advantages_PG.dtype == dtype
    for rewards, advantages, contributes in zip(
        rewards_PG.tolist(), advantages_PG.tolist(), contributes_P, strict=True
    ):
        spread, mean = statistics.stdev(rewards), statistics.fmean(rewards)
        assert advantages == pytest.approx([(reward - mean) / (spread + 0.1) for reward in rewards], rel=1e-2)
        assert bool(contributes) == (len(set(rewards)) > 1)
    assert 0 < contributes_P.sum() <= 40


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e-30])
def test_equal_rewards_give_exactly_nothing(reward: float) -> None:
    advantages, contributes = group_advantages(torch.full((2, 7), reward, dtype=torch.float64), eps=1e-12)
    assert advantages.tolist() == [[0.0] * 7] * 2
    assert contributes.tolist() == [False, False]


def test_integers_and_booleans_become_float32() -> None:
    assert group_advantages(torch.tensor([True, False]), eps=1e-6).advantages.dtype == torch.float32


@pytest.mark.parametrize(
    ("rewards", "eps", "message"),
    [
        ([1.0], 1e-4, "group of 1"),
        ([[[1.0, 0.0]]], 1e-4, "shape"),
        (1.0, 1e-4, "shape"),
        ([1.0, float("nan")], 1e-4, "NaN"),
        ([1.0, 0.0], 0.0, "eps"),
    ],
)
def test_mistakes(rewards: object, eps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, eps)  # type: ignore[arg-type]
