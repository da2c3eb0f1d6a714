from __future__ import annotations

import pytest
import torch

from saga_dist.objectives.grpo import grpo_loss, importance_weights


def _ragged(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [-torch.rand(length, generator=generator, dtype=torch.float64).to(dtype) for length in (3, 1, 5)]
    return rows, torch.tensor([0.7, -1.2, 0.3], dtype=torch.float64)


def test_by_hand() -> None:
    # -(1/10) * [2 * (-1 - 2) + (-1) * (-4)] = 0.2
    loss = grpo_loss([torch.tensor([-1.0, -2.0]), torch.tensor([-4.0])], None, torch.tensor([2.0, -1.0]), 10)
    assert loss.item() == pytest.approx(0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_loop_ragged_and_padded(dtype: torch.dtype) -> None:
    rows, advantages_G = _ragged(dtype)
    rows = [row.requires_grad_() for row in rows]
    expected = (
        -sum(
            float(advantage) * float(value)
            for row, advantage in zip(rows, advantages_G, strict=True)
            for value in row.tolist()
        )
        / 20
    )
    loss = grpo_loss(rows, None, advantages_G, 20)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for row, advantage in zip(rows, advantages_G.tolist(), strict=True):
        assert row.grad is not None
        assert row.grad.tolist() == pytest.approx([-advantage / 20] * len(row), rel=1e-6)

    padded_GT = torch.full((3, 6), float("nan"), dtype=dtype)  # what stands in the padding must not matter
    mask_GT = torch.zeros(3, 6, dtype=torch.bool)
    for index, row in enumerate(rows):
        padded_GT[index, : len(row)] = row.detach()
        mask_GT[index, : len(row)] = True
    padded_GT.requires_grad_()
    padded_loss = grpo_loss(padded_GT, mask_GT, advantages_G, 20)
    padded_loss.backward()
    assert padded_loss.item() == pytest.approx(expected, rel=1e-6)
    assert padded_GT.grad is not None
    assert torch.equal(padded_GT.grad != 0, mask_GT)

    weights_GT = torch.where(mask_GT, 1.0, float("nan")).to(dtype)
    padded_GT.grad = None
    weighted_loss = grpo_loss(padded_GT, mask_GT, advantages_G, 20, weights_GT)
    weighted_loss.backward()
    assert weighted_loss.item() == padded_loss.item()
    assert torch.equal(padded_GT.grad != 0, mask_GT)


def test_parts_of_a_buffer_add_up() -> None:
    rows, advantages_G = _ragged(torch.float64)
    parts = [grpo_loss([row], None, advantages_G[index : index + 1], 9) for index, row in enumerate(rows)]
    assert sum(parts).item() == pytest.approx(grpo_loss(rows, None, advantages_G, 9).item())


def test_weights_multiply_each_token() -> None:
    rows, advantages_G = _ragged(torch.float64)
    weights = [torch.arange(1.0, len(row) + 1, dtype=torch.float64).requires_grad_() for row in rows]
    scaled = [row * weight.detach() for row, weight in zip(rows, weights, strict=True)]
    loss = grpo_loss([row.requires_grad_() for row in rows], None, advantages_G, 9, weights)
    assert loss.item() == pytest.approx(grpo_loss(scaled, None, advantages_G, 9).item())
    loss.backward()
    assert all(weight.grad is None for weight in weights)
    ones = [torch.ones(len(row)) for row in rows]
    assert grpo_loss(rows, None, advantages_G, 9, ones).item() == grpo_loss(rows, None, advantages_G, 9).item()


def test_importance_weights() -> None:
    learner = torch.tensor([-1.0, -1.0, -1.0, -3.0], requires_grad=True)
    behaviour = torch.tensor([-1.0, -2.0, -9.0, -1.0])
    weights = importance_weights(learner, behaviour, truncate_at=4.0)
    assert weights.tolist() == pytest.approx([1.0, 2.718281828, 4.0, 0.135335283])
    assert weights[0].item() == 1.0
    assert not weights.requires_grad


@pytest.mark.parametrize("truncate_at", [1.0, 2.0])
def test_on_policy_weights_are_exactly_one(truncate_at: float) -> None:
    log_probs = -torch.rand(50, generator=torch.Generator().manual_seed(1)) * 30
    assert importance_weights(log_probs, log_probs.clone(), truncate_at).tolist() == [1.0] * 50


def test_mistakes() -> None:
    rows, advantages_G = _ragged(torch.float32)
    padded_GT, mask_GT = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_tokens_total = 8 with 9"):
        grpo_loss(rows, None, advantages_G, 8)
    with pytest.raises(ValueError, match="advantages"):
        grpo_loss(rows, None, advantages_G[:2], 9)
    with pytest.raises(ValueError, match="bool mask"):
        grpo_loss(padded_GT, None, advantages_G, 9)
    with pytest.raises(ValueError, match="bool mask"):
        grpo_loss(padded_GT, mask_GT.float(), advantages_G, 9)
    with pytest.raises(ValueError, match="ragged"):
        grpo_loss(rows, mask_GT, advantages_G, 9)
    with pytest.raises(ValueError, match="one weight per generated token"):
        grpo_loss(rows, None, advantages_G, 9, [torch.ones(3), torch.ones(2), torch.ones(5)])
    with pytest.raises(ValueError, match="truncate_at"):
        importance_weights(padded_GT, padded_GT, 0.5)
    with pytest.raises(ValueError, match="shapes"):
        importance_weights(padded_GT, padded_GT[:2], 2.0)
    with pytest.raises(ValueError, match="NaN"):
        importance_weights(padded_GT, torch.full_like(padded_GT, float("nan")), 2.0)
