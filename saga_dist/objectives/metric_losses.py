"""The metric loss L_DML as an extension point: any loss on the l2-normalised embeddings of the whole micro-batch."""

from __future__ import annotations

import inspect
from typing import Protocol

import torch
from torch import nn

from saga_dist.config.registries import METRIC_LOSSES
from saga_dist.errors import ConfigError


class MetricLossFactory(Protocol):
    """Makes a metric loss; an ``nn.Module`` class with such a constructor is one.

    ``saga_dist.testing.check_metric_loss`` checks a factory and the loss it makes.
    """

    def __call__(self, *, num_classes: int, embedding_dim: int, seed: int) -> nn.Module:
        """Returns a module: (embeddings [I, E] float32, l2-normalised; labels [I] int64 in [0, C)) -> scalar loss.

        Its trainable parameters are the proxies: they learn ``optimizer.proxy_lr_multiplier`` times as fast as the
        pooler and are saved in checkpoints.

        Args:
            num_classes: C of the training classes, at least 2.
            embedding_dim: E.
            seed: decides every random choice, the initial proxies above all.

        ``objective.metric_params`` come as further keyword arguments.
        """


class MetricLoss(nn.Module):
    """A metric loss with checked input: float32 arithmetic whatever the autocast state, labels in [0, C)."""

    def __init__(self, loss: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.loss = loss
        self.num_classes = num_classes

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of a batch.

        Args:
            embeddings_IE: [I, E] float32 or float64.
            labels_I: [I] integers in [0, C).

        Raises:
            TypeError: embeddings of half precision (distances would be noise) or labels that are no integers.
            ValueError: wrong shapes, or a label out of range.
            ConfigError: the loss returned something that is no scalar tensor.
        """
        if embeddings_IE.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"embeddings are {embeddings_IE.dtype}; expected float32 (raise them first)")
        if labels_I.is_floating_point() or labels_I.dtype == torch.bool:
            raise TypeError(f"labels are {labels_I.dtype}; expected integers")
        if embeddings_IE.ndim != 2 or labels_I.shape != embeddings_IE.shape[:1] or labels_I.numel() == 0:
            shapes = f"embeddings {tuple(embeddings_IE.shape)}, labels {tuple(labels_I.shape)}"
            raise ValueError(f"{shapes}; expected [I, E] and [I], not empty")
        lowest, highest = int(labels_I.min()), int(labels_I.max())
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(f"labels reach from {lowest} to {highest}; expected [0, {self.num_classes})")
        with torch.autocast(embeddings_IE.device.type, enabled=False):
            loss = self.loss(embeddings_IE, labels_I)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(f"the loss returned {found}", where=METRIC_LOSSES.key, expected="a scalar tensor")
        return loss


def build_metric_loss(
    name: str, *, num_classes: int, embedding_dim: int, seed: int, **params: float | int | str | bool
) -> MetricLoss:
    """Returns the metric loss that ``objective.metric_loss`` names; its proxies, if any, are decided by ``seed`` alone.

    Args:
        name: of a built-in loss (``builtin_metric_losses``), or the import path of a ``MetricLossFactory``.
        num_classes: C of the training classes.
        embedding_dim: E.
        seed: for the initial proxies.
        params: ``objective.metric_params``, keyword arguments of the factory.

    Raises:
        ConfigError: the name is unknown or cannot be imported; an unknown parameter, a wrong type or range; a factory
            of the user's own failed or returned no module.
    """
    factory: MetricLossFactory = METRIC_LOSSES.load(name)
    if num_classes < 2 or embedding_dim < 1:
        raise ConfigError(
            f"{num_classes} classes, dimension {embedding_dim}", expected="at least 2 classes, dimension 1"
        )
    with METRIC_LOSSES.calling(name):
        _check_parameters(name, factory, params)
        loss = factory(num_classes=num_classes, embedding_dim=embedding_dim, seed=seed, **params)
    if not isinstance(loss, nn.Module):
        raise ConfigError(
            f"{name!r} returned {type(loss).__name__}", where=METRIC_LOSSES.key, expected="a torch.nn.Module"
        )
    return MetricLoss(loss, num_classes)


def proxy_parameters(loss: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable proxies of a metric loss, empty for pair losses.

    They belong to an optimizer group of their own, with a larger learning rate than the encoder's.
    """
    return [parameter for parameter in loss.parameters() if parameter.requires_grad]


def _check_parameters(name: str, factory: MetricLossFactory, params: dict[str, float | int | str | bool]) -> None:
    """Compares the names of parameters with the factory's signature."""
    taken = inspect.signature(factory).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    known = [key for key in taken if key not in ("num_classes", "embedding_dim", "seed")]
    for key in params:
        if key not in known:
            raise ConfigError(
                f"{name} has no parameter {key!r}",
                where=f"objective.metric_params.{key}",
                expected=f"one of {', '.join(known)}" if known else "none",
            )
