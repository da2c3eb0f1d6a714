"""Contract check of metric losses (``objectives.metric_losses.MetricLossFactory``)."""

from __future__ import annotations

import torch
from torch import nn

from saga_dist.objectives.metric_losses import MetricLossFactory, proxy_parameters
from saga_dist.testing.require import require

NUM_CLASSES, EMBEDDING_DIM = 5, 16
"""C and E of the test batch."""
LABELS = (0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4)
"""Labels of the test batch. Class 3 has no image, as most classes in a micro-batch; the first and the last class do."""
TOLERANCE = 1e-4
"""Relative tolerance for values and gradients that differ only in the order of summation."""


def check_metric_loss(factory: MetricLossFactory, **metric_params: float | int | str | bool) -> None:
    """Checks that the learner can train with the metric loss of a factory.

    - The initial proxies depend on the seed alone.
    - The loss of a batch is a finite float32 scalar, the same on every call; it does not change the embeddings.
    - Gradients at embeddings and proxies are finite, and the gradient at the embeddings is not zero.
    - Loss and gradients do not depend on the order of the images.

    Args:
        factory: a function or class (num_classes, embedding_dim, seed, **metric_params) -> torch.nn.Module.
        metric_params: parameters as in ``objective.metric_params``.

    Raises:
        AssertionError: one of these points does not hold; the message says which.
    """

    def make(seed: int) -> nn.Module:
        return factory(num_classes=NUM_CLASSES, embedding_dim=EMBEDDING_DIM, seed=seed, **metric_params)

    loss = make(1)
    require(isinstance(loss, nn.Module), f"the factory returned {type(loss).__name__}; expected a torch.nn.Module")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        _check_equal_proxies(make(1), loss)
    embeddings_IE, labels_I = _batch()
    value, gradient_IE = _value_and_gradient(loss, embeddings_IE, labels_I)
    _check_value(value)
    _check_gradients(loss, gradient_IE)
    _check_repeats(loss, embeddings_IE, labels_I, value)
    _check_order(loss, embeddings_IE, labels_I, value, gradient_IE)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns random unit vectors [I, E] and labels [I]; with I < E, any classes are linearly separable."""
    generator = torch.Generator().manual_seed(0)
    embeddings_IE = torch.randn(len(LABELS), EMBEDDING_DIM, generator=generator)
    return nn.functional.normalize(embeddings_IE, dim=-1), torch.tensor(LABELS)


def _value_and_gradient(
    loss: nn.Module, embeddings_IE: torch.Tensor, labels_I: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss and its gradient at the embeddings [I, E]; sets the gradients of the proxies."""
    loss.zero_grad(set_to_none=True)
    leaf_IE = embeddings_IE.clone().requires_grad_()
    value = loss(leaf_IE, labels_I)
    require(isinstance(value, torch.Tensor), f"the loss is {type(value).__name__}; expected a tensor")
    require(value.ndim == 0, f"the loss has shape {tuple(value.shape)}; expected a scalar, shape ()")
    require(value.requires_grad, "the loss has no gradient; expected one at the embeddings")
    value.backward()
    require(leaf_IE.grad is not None, "no gradient reaches the embeddings")
    assert leaf_IE.grad is not None
    require(torch.equal(leaf_IE.detach(), embeddings_IE), "the loss changed the embeddings it was given")
    return value.detach(), leaf_IE.grad


def _check_equal_proxies(mine: nn.Module, other: nn.Module) -> None:
    tensors = (mine.state_dict(), other.state_dict())
    require(
        tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]),
        "two losses of one seed have different proxies; expected the seed alone to decide them: draw them with "
        "torch.Generator().manual_seed(seed)",
    )


def _check_value(value: torch.Tensor) -> None:
    require(value.dtype == torch.float32, f"the loss of float32 embeddings is {value.dtype}; expected torch.float32")
    require(bool(torch.isfinite(value)), f"the loss of random embeddings is {value.item()}; expected a finite number")


def _check_gradients(loss: nn.Module, gradient_IE: torch.Tensor) -> None:
    require(bool(torch.isfinite(gradient_IE).all()), "the gradient at the embeddings is not finite")
    require(float(gradient_IE.norm()) > 0, "the gradient at random embeddings is zero; expected the loss to move them")
    for proxies in proxy_parameters(loss):
        require(proxies.dtype == torch.float32, f"proxies are {proxies.dtype}; expected torch.float32")
        require(
            proxies.grad is None or bool(torch.isfinite(proxies.grad).all()),
            "the gradient at the proxies is not finite",
        )


def _check_repeats(loss: nn.Module, embeddings_IE: torch.Tensor, labels_I: torch.Tensor, value: torch.Tensor) -> None:
    again, _ = _value_and_gradient(loss, embeddings_IE, labels_I)
    require(
        torch.equal(again, value),
        f"the loss of one batch is {value.item()} at first, then {again.item()}; expected the same on every call",
    )


def _check_order(
    loss: nn.Module,
    embeddings_IE: torch.Tensor,
    labels_I: torch.Tensor,
    value: torch.Tensor,
    gradient_IE: torch.Tensor,
) -> None:
    order_I = torch.randperm(len(labels_I), generator=torch.Generator().manual_seed(1))
    other_value, other_gradient_IE = _value_and_gradient(loss, embeddings_IE[order_I], labels_I[order_I])
    require(
        torch.allclose(other_value, value, rtol=TOLERANCE),
        f"the loss of a batch is {value.item()}, of the same images in another order {other_value.item()}",
    )
    difference = float((other_gradient_IE - gradient_IE[order_I]).norm())
    require(
        difference <= TOLERANCE * float(gradient_IE.norm()),
        "the gradient of an image depends on its place in the batch; expected the order not to matter",
    )
