"""One door to the metric losses: L_DML is any of them, on the l2-normalised embeddings of the whole micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from saga_dist.errors import ConfigError
from saga_dist.objectives.potential_field import PotentialFieldLoss


class MetricLoss(nn.Module):
    """A metric loss with checked input: float32 arithmetic whatever the autocast state, labels in [0, C)."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None, num_classes: int) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.num_classes = num_classes

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of a batch.

        Args:
            embeddings_IE: [I, E] float32 or float64.
            labels_I: [I] integers in [0, C).

        Raises:
            TypeError: embeddings of half precision (distances would be noise) or labels that are no integers.
            ValueError: wrong shapes, or a label out of range.
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
            if self.miner is not None:
                return self.loss(embeddings_IE, labels_I, self.miner(embeddings_IE, labels_I))
            return self.loss(embeddings_IE, labels_I)


def build_metric_loss(
    name: str, *, num_classes: int, embedding_dim: int, seed: int, **params: float | int | str | bool
) -> MetricLoss:
    """Returns the metric loss of that name; its proxies, if any, are decided by ``seed`` alone.

    Parameters and defaults: ``potential_field`` (proxies_per_class 15, delta 0.2, alpha 3, reduction "mean"),
    ``proxy_anchor`` (margin 0.1, alpha 32), ``multi_similarity`` (alpha 2, beta 50, base 0.5, miner 0.1; miner 0 takes
    all pairs), ``infonce`` (variant "ntxent" with temperature 0.07, or "supcon" with 0.1).

    Args:
        name: one of the above.
        num_classes: C of the training classes.
        embedding_dim: E.
        seed: for the initial proxies; the global random state is left as it was.

    Raises:
        ConfigError: unknown name, unknown parameter, wrong type or range.
    """
    if name not in _BUILDERS:
        raise ConfigError(
            f"unknown loss {name!r}", where="objective.metric_loss", expected=f"one of {_names(_BUILDERS)}"
        )
    if num_classes < 2 or embedding_dim < 1:
        raise ConfigError(
            f"{num_classes} classes, dimension {embedding_dim}", expected="at least 2 classes, dimension 1"
        )
    defaults, build = _BUILDERS[name]
    settings = dict(defaults)
    for key, value in params.items():
        settings[key] = _checked(name, defaults, key, value)
    if settings.get("variant") == "supcon" and "temperature" not in params:
        settings["temperature"] = 0.1
    loss, miner = build(settings, num_classes, embedding_dim, seed)
    return MetricLoss(loss, miner, num_classes)


def proxy_parameters(loss: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable proxies of a metric loss, empty for pair losses.

    They belong to an optimizer group of their own, with a larger learning rate than the encoder's.
    """
    return [parameter for parameter in loss.parameters() if parameter.requires_grad]


Settings = dict[str, Any]
BuiltIndex = tuple[nn.Module, nn.Module | None]


def _potential_field(settings: Settings, num_classes: int, embedding_dim: int, seed: int) -> BuiltIndex:
    return PotentialFieldLoss(num_classes, embedding_dim, seed=seed, **settings), None


def _proxy_anchor(settings: Settings, num_classes: int, embedding_dim: int, seed: int) -> BuiltIndex:
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    # The library draws its proxies from the global state; fork it so that neither side sees the other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProxyAnchorLoss(num_classes, embedding_dim, margin=settings["margin"], alpha=settings["alpha"]), None


def _multi_similarity(settings: Settings, num_classes: int, embedding_dim: int, seed: int) -> BuiltIndex:
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    loss = MultiSimilarityLoss(alpha=settings["alpha"], beta=settings["beta"], base=settings["base"])
    return loss, MultiSimilarityMiner(epsilon=settings["miner"]) if settings["miner"] else None


def _infonce(settings: Settings, num_classes: int, embedding_dim: int, seed: int) -> BuiltIndex:
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    return (NTXentLoss if settings["variant"] == "ntxent" else SupConLoss)(temperature=settings["temperature"]), None


_BUILDERS: Mapping[str, tuple[Settings, Callable[[Settings, int, int, int], BuiltIndex]]] = {
    "potential_field": ({"proxies_per_class": 15, "delta": 0.2, "alpha": 3.0, "reduction": "mean"}, _potential_field),
    "proxy_anchor": ({"margin": 0.1, "alpha": 32.0}, _proxy_anchor),
    "multi_similarity": ({"alpha": 2.0, "beta": 50.0, "base": 0.5, "miner": 0.1}, _multi_similarity),
    "infonce": ({"variant": "ntxent", "temperature": 0.07}, _infonce),
}
_CHOICES = {"reduction": ("mean", "sum"), "variant": ("ntxent", "supcon")}
_MAY_BE_ZERO = (
    ("potential_field", "alpha"),
    ("multi_similarity", "miner"),
    ("multi_similarity", "base"),
    ("proxy_anchor", "margin"),
)


def _checked(name: str, defaults: Settings, key: str, value: object) -> Any:
    where = f"objective.metric_params.{key}"
    if key not in defaults:
        raise ConfigError(f"{name} has no parameter {key!r}", where=where, expected=f"one of {_names(defaults)}")
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ConfigError(f"{value!r}", where=where, expected=f"one of {_names(_CHOICES[key])}")
        return value
    wanted = type(defaults[key])
    if isinstance(value, bool) or not isinstance(value, (int, wanted)):
        raise ConfigError(f"{value!r}", where=where, expected="a whole number" if wanted is int else "a number")
    zero_is_fine = (name, key) in _MAY_BE_ZERO
    if not (0 <= value < float("inf") if zero_is_fine else 0 < value < float("inf")):
        raise ConfigError(f"{value!r}", where=where, expected="a number >= 0" if zero_is_fine else "a positive number")
    return wanted(value)


def _names(values: Any) -> str:
    return ", ".join(values)
