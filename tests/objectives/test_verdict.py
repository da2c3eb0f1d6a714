from __future__ import annotations

import math

import pytest
import torch

from saga_dist.objectives.verdict import verdict_loss


def test_two_way_likelihood_by_hand() -> None:
    # p(right) = .3, p(wrong) = .1, something else .6: -log(.3 / .4); and with the roles swapped -log(.1 / .4)
    right, wrong = torch.tensor([0.3, 0.1]).log().requires_grad_(), torch.tensor([0.1, 0.3]).log().requires_grad_()
    losses = verdict_loss(right, wrong)
    assert losses.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])
    losses.sum().backward()
    # d/d(log p_right) = -(1 - share): what is right already pulls less
    assert right.grad is not None and right.grad.tolist() == pytest.approx([-0.25, -0.75])
    assert wrong.grad is not None and wrong.grad.tolist() == pytest.approx([0.25, 0.75])


def test_what_is_no_verdict_changes_nothing() -> None:
    right, wrong = torch.tensor(-2.0), torch.tensor(-3.0)
    assert verdict_loss(right - 50, wrong - 50).item() == pytest.approx(verdict_loss(right, wrong).item())


def test_extreme_probabilities_stay_finite() -> None:
    assert verdict_loss(torch.tensor(0.0), torch.tensor(-200.0)).item() == 0.0
    assert verdict_loss(torch.tensor(-200.0), torch.tensor(0.0)).item() == 200.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        verdict_loss(torch.zeros(2), torch.zeros(3))
