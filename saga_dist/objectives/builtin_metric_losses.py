"""Factories of the built-in metric losses; their further arguments are ``objective.metric_params``.

To add one, write a ``MetricLossFactory`` here, register it in ``config/registries.py``, and list its parameters in
``config/metric_params.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from saga_dist.config.metric_params import complete_metric_params
from saga_dist.objectives.potential_field import PotentialFieldLoss


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


def potential_field(*, num_classes: int, embedding_dim: int, seed: int, **params: Any) -> nn.Module:
    """Returns the Potential Field loss; the parameters are those of ``potential_field.PotentialFieldLoss``.

    Raises:
        ConfigError: a parameter is unknown, has a wrong type or is out of range.
    """
    return PotentialFieldLoss(
        num_classes, embedding_dim, seed=seed, **complete_metric_params("potential_field", params)
    )


def proxy_anchor(*, num_classes: int, embedding_dim: int, seed: int, **params: Any) -> nn.Module:
    """Returns the Proxy-Anchor loss with one proxy per class.

    Args:
        num_classes: C, number of training classes.
        embedding_dim: E, width of an embedding.
        seed: seed of the initial proxies.
        params: ``margin`` of the cosine similarity, at least 0; ``alpha``, scale of the similarities, positive.

    Raises:
        ConfigError: a parameter is unknown, has a wrong type or is out of range.
    """
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    values = complete_metric_params("proxy_anchor", params)
    with _seeded(seed):
        return ProxyAnchorLoss(num_classes, embedding_dim, **values)


def multi_similarity(*, num_classes: int, embedding_dim: int, seed: int, **params: Any) -> nn.Module:
    """Returns the Multi-Similarity loss with its miner; it has no proxies.

    Args:
        num_classes: not used.
        embedding_dim: not used.
        seed: not used.
        params: ``alpha`` and ``beta``, scales of positive and negative pairs, positive; ``base``, similarity offset of
            both, at least 0; ``miner``, margin of the miner, at least 0; 0 uses all pairs.

    Raises:
        ConfigError: a parameter is unknown, has a wrong type or is out of range.
    """
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    values = complete_metric_params("multi_similarity", params)
    epsilon = values.pop("miner")
    loss: nn.Module = MultiSimilarityLoss(**values)
    return MinedLoss(loss, MultiSimilarityMiner(epsilon=epsilon)) if epsilon else loss


def infonce(*, num_classes: int, embedding_dim: int, seed: int, **params: Any) -> nn.Module:
    """Returns the InfoNCE loss, in which images of the same class in a batch are positives; it has no proxies.

    Args:
        num_classes: not used.
        embedding_dim: not used.
        seed: not used.
        params: ``variant``, ``ntxent`` or ``supcon``; ``temperature``, a positive number, by default 0.07 (ntxent) or
            0.1 (supcon).

    Raises:
        ConfigError: a parameter is unknown, has a wrong type or is out of range.
    """
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    values = complete_metric_params("infonce", params)
    loss_class, default = {"ntxent": (NTXentLoss, 0.07), "supcon": (SupConLoss, 0.1)}[values["variant"]]
    temperature = values["temperature"]
    loss: nn.Module = loss_class(temperature=default if temperature is None else temperature)
    return loss


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global random state, which a library draws from, and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
