"""The metric loss L_DML, an extension point: any loss on the l2-normalised embeddings of a whole micro-batch."""

from __future__ import annotations

import inspect
from typing import Protocol

import torch
from torch import nn

from saga_dist.config.registries import METRIC_LOSSES
from saga_dist.errors import ConfigError


class MetricLossFactory(Protocol):
    """Factory of a metric loss; an ``nn.Module`` class with such a constructor is a factory.

    ``saga_dist.testing.check_metric_loss`` checks a factory and the loss that it returns.
    """

    def __call__(self, *, num_classes: int, embedding_dim: int, seed: int) -> nn.Module:
        """Returns a module: (embeddings [I, E] float32, l2-normalised; labels [I] int64 in [0, C)) -> scalar loss.

        The trainable parameters of the module are the proxies. Their learning rate is the pooler's times
        ``optimizer.proxy_lr_multiplier``, and they are saved in checkpoints. ``objective.metric_params`` are passed as
        further keyword arguments.

        Args:
            num_classes: C, number of training classes, at least 2.
            embedding_dim: E, width of an embedding.
            seed: seed of every random choice, such as the initial proxies.
        """


class MetricLoss(nn.Module):
    """A metric loss with checked inputs, computed without autocast.

    Args:
        loss: module that a ``MetricLossFactory`` returned.
        num_classes: C, number of training classes.
    """

    def __init__(self, loss: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.loss = loss
        self.num_classes = num_classes

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of a batch.

        Args:
            embeddings_IE: [I, E], float32 or float64.
            labels_I: [I], integers in [0, C).

        Raises:
            TypeError: embeddings have half precision, in which distances are too inexact, or labels are no integers.
            ValueError: shapes do not fit, or a label is out of range.
            ConfigError: the loss did not return a scalar tensor.
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
    """Returns the configured metric loss.

    Args:
        name: name of a built-in loss (``builtin_metric_losses``), or import path of a ``MetricLossFactory``.
        num_classes: C, number of training classes.
        embedding_dim: E, width of an embedding.
        seed: seed of the initial proxies.
        params: ``objective.metric_params``, keyword arguments of the factory.

    Raises:
        ConfigError: the name is unknown or cannot be imported; a parameter is unknown, has a wrong type or is out of
            range; or a user's factory raised, or did not return a module.
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
    """Returns the proxies of a metric loss, its trainable parameters; empty for pair losses.

    They have an optimizer group of their own, with a larger learning rate than the encoder's.
    """
    return [parameter for parameter in loss.parameters() if parameter.requires_grad]


def _check_parameters(name: str, factory: MetricLossFactory, params: dict[str, float | int | str | bool]) -> None:
    """Checks that the factory's signature has all parameters.

    Raises:
        ConfigError: it does not.
    """
    signature = inspect.signature(factory).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values()):
        return
    accepted = [key for key in signature if key not in ("num_classes", "embedding_dim", "seed")]
    for key in params:
        if key not in accepted:
            raise ConfigError(
                f"{name} has no parameter {key!r}",
                where=f"objective.metric_params.{key}",
                expected=f"one of {', '.join(accepted)}" if accepted else "none",
            )
