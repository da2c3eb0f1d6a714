"""Gradient clipping on hand-computed numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saga_dist.errors import TrainingError
from saga_dist.workers.optimization import clip_gradients


def make_optimizer(**gradients: float) -> torch.optim.Optimizer:
    groups = []
    for name, value in gradients.items():
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([value])
        groups.append({"name": name, "params": [parameter]})
    return torch.optim.SGD(groups, lr=1.0)


def gradients_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["name"]: group["params"][0].grad.item() for group in optimizer.param_groups}


def test_encoder_and_pooler_are_clipped_by_their_joint_norm_and_proxies_by_their_own() -> None:
    optimizer = make_optimizer(encoder=3.0, pooler=4.0, proxies=10.0)
    clipped = clip_gradients(optimizer, 1.0)
    assert gradients_of(optimizer) == pytest.approx({"encoder": 0.6, "pooler": 0.8, "proxies": 1.0}, rel=1e-5)
    assert (clipped.encoder_norm, clipped.encoder_factor, clipped.proxies_norm) == pytest.approx((5.0, 0.2, 10.0))


def test_gradients_below_the_limit_stay() -> None:
    optimizer = make_optimizer(encoder=3.0, pooler=4.0, proxies=10.0)
    clipped = clip_gradients(optimizer, 6.0)
    assert gradients_of(optimizer) == pytest.approx({"encoder": 3.0, "pooler": 4.0, "proxies": 6.0}, rel=1e-5)
    assert clipped.encoder_factor == 1.0


def test_without_proxies_or_gradients() -> None:
    clipped = clip_gradients(make_optimizer(encoder=0.0), 1.0)
    assert (clipped.encoder_norm, clipped.encoder_factor, clipped.proxies_norm) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("name", ["encoder", "pooler", "proxies"])
def test_a_gradient_that_is_not_finite_is_refused(name: str) -> None:
    gradients = {"encoder": 1.0, "pooler": 1.0, "proxies": 1.0} | {name: float("inf")}
    with pytest.raises(TrainingError, match="not finite"):
        clip_gradients(make_optimizer(**gradients), 1.0)
