from __future__ import annotations

import math

import pytest
import torch

from saga_dist.objectives.attention import (
    attention_alignment_loss,
    attention_kl,
    attention_statistics,
    attention_targets,
    buffer_alignment_loss,
    renormalised_attention,
)


def test_heads_are_averaged_before_the_columns_are_renormalised() -> None:
    # head means (0.2, 0.2) -> (1/2, 1/2); renormalising each head first would give (0.45, 0.55)
    attention_THN = torch.tensor([[[0.36, 0.04], [0.04, 0.36]], [[0.1, 0.3], [0.0, 0.0]]], requires_grad=True)
    rows_TN = renormalised_attention(attention_THN)
    assert rows_TN.tolist() == [pytest.approx([0.5, 0.5]), pytest.approx([0.25, 0.75])]
    assert not rows_TN.requires_grad
    unequal_THN = torch.tensor([[[0.5, 0.1], [0.0, 0.2]]])
    assert renormalised_attention(unequal_THN)[0].tolist() == pytest.approx([0.625, 0.375])


def test_rows_without_mass_become_uniform_and_half_precision_is_raised() -> None:
    rows_TN = renormalised_attention(torch.tensor([[0.0, 0.0, 0.0], [1e-6, 0.0, 3e-6]], dtype=torch.float16))
    assert rows_TN.dtype == torch.float32
    assert rows_TN[0].tolist() == pytest.approx([1 / 3] * 3)
    assert rows_TN.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_target_is_the_mean_over_description_tokens() -> None:
    rows_TN = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert attention_targets(rows_TN, torch.tensor([True, False, True])).tolist() == [0.75, 0.25]
    assert attention_targets(rows_TN).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no description token"):
        attention_targets(rows_TN, torch.zeros(3, dtype=torch.bool))


def test_kl_by_hand() -> None:
    target_N, beta_N = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert attention_kl(target_N, beta_N).item() == pytest.approx(math.log(2))
    assert attention_kl(beta_N, beta_N).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_give_the_loop_over_completions(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    targets_GN = torch.softmax(4 * torch.randn(6, 9, generator=generator, dtype=torch.float64), -1)
    targets_GN[0] = torch.eye(9, dtype=torch.float64)[2]  # a target may be one patch alone
    targets_GN = targets_GN.to(dtype).requires_grad_()
    scores_N = torch.randn(9, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    loop = torch.stack([attention_kl(target_N, torch.softmax(scores_N, -1)) for target_N in targets_GN]).mean()
    loop.backward()
    expected_gradient = scores_N.grad.clone()
    scores_N.grad = None

    mean_N, negative_entropy = attention_statistics(targets_GN)
    loss = attention_alignment_loss(mean_N, negative_entropy, torch.log_softmax(scores_N, -1))
    loss.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert loss.item() == pytest.approx(loop.item(), rel=tolerance)
    assert torch.allclose(scores_N.grad, expected_gradient, atol=tolerance)
    # the textbook gradient of cross-entropy through a softmax
    assert torch.allclose(scores_N.grad, (torch.softmax(scores_N, -1) - mean_N).detach(), atol=tolerance)
    assert targets_GN.grad is None
    assert negative_entropy.item() <= 0


def test_gradient_reaches_the_pooler_only() -> None:
    target_N = torch.tensor([0.25, 0.75], requires_grad=True)
    entropy = torch.tensor(-0.5, requires_grad=True)
    beta_N = torch.tensor([0.5, 0.5], requires_grad=True)
    (attention_alignment_loss(target_N, entropy, beta_N.log()) + attention_kl(target_N, beta_N)).backward()
    assert target_N.grad is None
    assert entropy.grad is None
    assert beta_N.grad.tolist() == pytest.approx([-1.0, -3.0])


def test_alignment_survives_weights_that_underflow() -> None:
    scores_N = torch.tensor([0.0, -200.0], requires_grad=True)
    loss = attention_alignment_loss(torch.tensor([0.5, 0.5]), -math.log(2), torch.log_softmax(scores_N, -1))
    loss.backward()
    assert loss.item() == pytest.approx(100 - math.log(2))
    assert scores_N.grad.tolist() == pytest.approx([0.5, -0.5])


def test_buffer_mean_weighs_groups_by_their_completions() -> None:
    per_completion = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])]
    losses_P = torch.stack([values.mean() for values in per_completion])
    counts_P = torch.tensor([3, 1])
    assert buffer_alignment_loss(losses_P, counts_P, 4).item() == pytest.approx(torch.cat(per_completion).mean().item())
    parts = [buffer_alignment_loss(losses_P[i : i + 1], counts_P[i : i + 1], 4).item() for i in range(2)]
    assert sum(parts) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="whole buffer"):
        buffer_alignment_loss(losses_P, counts_P, 3)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="expected floating"):
        renormalised_attention(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected floating"):
        renormalised_attention(torch.ones(2, 0))
    with pytest.raises(ValueError, match="negative, NaN"):
        renormalised_attention(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(ValueError, match="negative, NaN"):
        renormalised_attention(torch.tensor([[-0.5, 1.0]]))
    with pytest.raises(ValueError, match="bool mask"):
        attention_targets(torch.ones(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one"):
        attention_statistics(torch.ones(0, 3))
    with pytest.raises(ValueError, match="expected the same"):
        attention_kl(torch.ones(3), torch.ones(4))
