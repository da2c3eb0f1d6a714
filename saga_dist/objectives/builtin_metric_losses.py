"""Factories of the built-in metric losses; their keyword arguments are ``objective.metric_params``.

To add one, write a ``MetricLossFactory`` here and register it in ``config/registries.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, get_args

import torch
from torch import nn

from saga_dist.errors import ConfigError
from saga_dist.objectives.potential_field import PotentialFieldLoss, Reduction

ChoiceT = TypeVar("ChoiceT", bound=str)
_REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


class MinedLoss(nn.Module):
    """A pair loss that is computed on the pairs selected by a miner.

    Args:
        loss: loss of (embeddings, labels, pairs).
        miner: returns the pairs for (embeddings, labels).
    """

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of the mined pairs of embeddings [I, E] with labels [I]."""
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
    reduction: str = "per_pair",
) -> nn.Module:
    """Returns the Potential Field loss; the arguments are those of ``potential_field.PotentialFieldLoss``.

    Raises:
        ConfigError: an argument has a wrong type or is out of range.
    """
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
    """Returns the Proxy-Anchor loss with one proxy per class.

    Args:
        num_classes: C, number of training classes.
        embedding_dim: E, width of an embedding.
        seed: seed of the initial proxies.
        margin: margin of the cosine similarity, at least 0.
        alpha: scale of the similarities, positive.

    Raises:
        ConfigError: an argument has a wrong type or is out of range.
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
    """Returns the Multi-Similarity loss with its miner; it has no proxies.

    Args:
        num_classes: not used.
        embedding_dim: not used.
        seed: not used.
        alpha: scale of positive pairs, positive.
        beta: scale of negative pairs, positive.
        base: similarity offset of both, at least 0.
        miner: margin of the miner, at least 0; 0 uses all pairs.

    Raises:
        ConfigError: an argument has a wrong type or is out of range.
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
    """Returns the InfoNCE loss, in which images of the same class in a batch are positives; it has no proxies.

    Args:
        num_classes: not used.
        embedding_dim: not used.
        seed: not used.
        variant: ``ntxent`` or ``supcon``.
        temperature: positive number; None for 0.07 (ntxent) or 0.1 (supcon).

    Raises:
        ConfigError: an argument has a wrong type or is out of range.
    """
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    losses = {"ntxent": (NTXentLoss, 0.07), "supcon": (SupConLoss, 0.1)}
    loss_class, default = losses[_one_of(variant, "variant", tuple(losses))]
    loss: nn.Module = loss_class(temperature=default if temperature is None else _positive(temperature, "temperature"))
    return loss


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global random state, which a library draws from, and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _whole(value: object, key: str) -> int:
    """Returns a positive whole number.

    Raises:
        ConfigError: the value is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(value, key, "a whole number")
    return int(_positive(value, key))


def _positive(value: object, key: str) -> float:
    """Returns a positive finite number.

    Raises:
        ConfigError: the value is none.
    """
    number = _number(value, key)
    if not 0 < number < float("inf"):
        raise _wrong(value, key, "a positive number")
    return number


def _not_negative(value: object, key: str) -> float:
    """Returns a finite number that is at least 0.

    Raises:
        ConfigError: the value is none.
    """
    number = _number(value, key)
    if not 0 <= number < float("inf"):
        raise _wrong(value, key, "a number >= 0")
    return number


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, key, "a number")
    return float(value)


def _one_of(value: object, key: str, choices: Sequence[ChoiceT]) -> ChoiceT:
    """Returns the choice that equals the value.

    Raises:
        ConfigError: there is none.
    """
    for choice in choices:
        if value == choice:
            return choice
    raise _wrong(value, key, f"one of {', '.join(choices)}")


def _wrong(value: object, key: str, expected: str) -> ConfigError:
    return ConfigError(f"{value!r}", where=f"objective.metric_params.{key}", expected=expected)
