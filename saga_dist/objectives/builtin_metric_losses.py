"""The built-in metric losses: a ``MetricLossFactory`` each, whose keyword arguments are ``objective.metric_params``.

A new one is a function here and a line in ``config/registries.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from saga_dist.errors import ConfigError
from saga_dist.objectives.potential_field import PotentialFieldLoss, Reduction

ChoiceT = TypeVar("ChoiceT", bound=str)
_REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum")


class MinedLoss(nn.Module):
    """A pair loss on the pairs that a miner chooses."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of the mined pairs."""
        mined: torch.Tensor = self.loss(embeddings_IE, labels_I, self.miner(embeddings_IE, labels_I))
        return mined


def potential_field(
    *,
    num_classes: int,
    embedding_dim: int,
    seed: int,
    proxies_per_class: int = 15,
    delta: float = 0.2,
    alpha: float = 3.0,
    reduction: str = "mean",
) -> nn.Module:
    """Returns Potential Field (see ``potential_field.PotentialFieldLoss`` for the parameters)."""
    return PotentialFieldLoss(
        num_classes,
        embedding_dim,
        seed=seed,
        proxies_per_class=_whole(proxies_per_class, "proxies_per_class"),
        delta=_positive(delta, "delta"),
        alpha=_not_negative(alpha, "alpha"),
        reduction=_one_of(reduction, "reduction", _REDUCTIONS),
    )


def proxy_anchor(
    *, num_classes: int, embedding_dim: int, seed: int, margin: float = 0.1, alpha: float = 32.0
) -> nn.Module:
    """Returns Proxy-Anchor with one proxy per class.

    Args:
        num_classes: C.
        embedding_dim: E.
        seed: of the initial proxies.
        margin: of the cosine similarity, at least 0.
        alpha: scale, positive.
    """
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    margin, alpha = _not_negative(margin, "margin"), _positive(alpha, "alpha")
    with _seeded(seed):
        return ProxyAnchorLoss(num_classes, embedding_dim, margin=margin, alpha=alpha)


def multi_similarity(
    *,
    num_classes: int,
    embedding_dim: int,
    seed: int,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    miner: float = 0.1,
) -> nn.Module:
    """Returns Multi-Similarity with its miner; it has no proxies, so classes, dimension and seed have no part in it.

    Args:
        num_classes: C.
        embedding_dim: E.
        seed: none is needed.
        alpha: weight of positive pairs, positive.
        beta: weight of negative pairs, positive.
        base: similarity at which both switch, at least 0.
        miner: margin of the miner, at least 0; 0 takes all pairs.
    """
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    loss = MultiSimilarityLoss(
        alpha=_positive(alpha, "alpha"), beta=_positive(beta, "beta"), base=_not_negative(base, "base")
    )
    epsilon = _not_negative(miner, "miner")
    return MinedLoss(loss, MultiSimilarityMiner(epsilon=epsilon)) if epsilon else loss


def infonce(
    *, num_classes: int, embedding_dim: int, seed: int, variant: str = "ntxent", temperature: float | None = None
) -> nn.Module:
    """Returns InfoNCE over the classes of the batch; it has no proxies, so classes, dimension and seed have no part.

    Args:
        num_classes: C.
        embedding_dim: E.
        seed: none is needed.
        variant: ``ntxent`` or ``supcon``.
        temperature: positive; by default 0.07 (ntxent) or 0.1 (supcon).
    """
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    losses = {"ntxent": (NTXentLoss, 0.07), "supcon": (SupConLoss, 0.1)}
    loss, default = losses[_one_of(variant, "variant", tuple(losses))]
    made: nn.Module = loss(temperature=default if temperature is None else _positive(temperature, "temperature"))
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global random state for a library that draws from it, and puts it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _whole(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(value, key, "a whole number")
    return int(_positive(value, key))


def _positive(value: object, key: str) -> float:
    number = _number(value, key)
    if not 0 < number < float("inf"):
        raise _wrong(value, key, "a positive number")
    return number


def _not_negative(value: object, key: str) -> float:
    number = _number(value, key)
    if not 0 <= number < float("inf"):
        raise _wrong(value, key, "a number >= 0")
    return number


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, key, "a number")
    return float(value)


def _one_of(value: object, key: str, choices: Sequence[ChoiceT]) -> ChoiceT:
    for choice in choices:
        if value == choice:
            return choice
    raise _wrong(value, key, f"one of {', '.join(choices)}")


def _wrong(value: object, key: str, expected: str) -> ConfigError:
    return ConfigError(f"{value!r}", where=f"objective.metric_params.{key}", expected=expected)
