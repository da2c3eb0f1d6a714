"""The contract of metric losses: the built-in ones keep it, and every way to break it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from saga_dist.config.registries import METRIC_LOSSES
from saga_dist.testing import check_metric_loss


@pytest.mark.parametrize("name", METRIC_LOSSES.builtin)
def test_built_in_losses_keep_the_contract(name: str) -> None:
    check_metric_loss(METRIC_LOSSES.load(name))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("potential_field", {"proxies_per_class": 2, "alpha": 4.0, "reduction": "sum"}),
        ("multi_similarity", {"miner": 0}),
        ("infonce", {"variant": "supcon"}),
    ],
)
def test_built_in_losses_keep_it_with_other_parameters(name: str, params: dict[str, Any]) -> None:
    check_metric_loss(METRIC_LOSSES.load(name), **params)


def proxies(seed: int | None) -> torch.Tensor:
    return torch.randn(5, 16, generator=None if seed is None else torch.Generator().manual_seed(seed))


class Loss(nn.Module):
    """A loss that keeps the contract, and the place to break it."""

    def __init__(self, *, num_classes: int, embedding_dim: int, seed: int) -> None:
        super().__init__()
        self.proxies_CE = nn.Parameter(proxies(seed))

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        return self.value((embeddings_IE - self.proxies_CE[labels_I]).square().sum(-1), labels_I)

    def value(self, distances_I: torch.Tensor, labels_I: torch.Tensor) -> Any:
        return distances_I.mean()


def valued(value: Callable[[torch.Tensor, torch.Tensor], Any]) -> type[Loss]:
    return type("Valued", (Loss,), {"value": lambda self, distances_I, labels_I: value(distances_I, labels_I)})


class DrawnAnywhere(Loss):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)  # type: ignore[arg-type]
        self.proxies_CE = nn.Parameter(proxies(None))


class Overwrites(Loss):
    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        value = super().forward(embeddings_IE * 1, labels_I)
        embeddings_IE.data += 1
        return value


class Counts(Loss):
    calls = 0

    def value(self, distances_I: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return distances_I.mean() * self.calls


def test_the_loss_to_be_broken_keeps_the_contract() -> None:
    check_metric_loss(Loss)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda **sizes: 3, "the factory returned int"),
        (DrawnAnywhere, "two losses of one seed have different proxies"),
        (valued(lambda distances_I, labels_I: distances_I), r"the loss has shape \(12,\); expected a scalar"),
        (valued(lambda distances_I, labels_I: distances_I.mean().item()), "the loss is float; expected a tensor"),
        (valued(lambda distances_I, labels_I: distances_I.mean().detach()), "the loss has no gradient"),
        (valued(lambda distances_I, labels_I: distances_I.mean().double()), "float32 embeddings is torch.float64"),
        (valued(lambda distances_I, labels_I: distances_I.mean() / 0), "is inf; expected a finite number"),
        (valued(lambda distances_I, labels_I: 0 * distances_I.mean()), "gradient at random embeddings is zero"),
        (valued(lambda distances_I, labels_I: (0 * distances_I.mean()).sqrt()), "at the embeddings is not finite"),
        (valued(lambda distances_I, labels_I: distances_I[0]), "of the same images in another order"),
        (Counts, "expected the same on every call"),
        (Overwrites, "the loss changed the embeddings"),
    ],
)
def test_a_broken_contract_is_told(factory: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_metric_loss(factory)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    check_metric_loss(Loss)
    assert torch.equal(torch.random.get_rng_state(), state)
