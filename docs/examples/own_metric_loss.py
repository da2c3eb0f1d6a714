"""Example of a metric loss: CosFace (Wang et al., CVPR 2018, arXiv 1801.09414), a softmax over cosines with a margin.

    cd docs/examples
    saga-dist train ../../configs/birds.toml objective.metric_loss=own_metric_loss:CosFace \\
        'objective.metric_params={margin = 0.2, scale = 16}' --dry-run

On a cluster, `ray job submit --working-dir docs/examples -- saga-dist train …` sends the module along.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CosFace(nn.Module):
    """Cross-entropy of ``scale * (cos(embedding, proxy) - margin at the true class)``, one proxy per class.

    Args:
        num_classes: number of classes C.
        embedding_dim: dimension of an embedding E.
        seed: seed of the initial proxies.
        margin: margin that is subtracted from the cosine of the true class, in [0, 1].
        scale: inverse temperature, positive.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, seed: int, *, margin: float = 0.35, scale: float = 64.0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.proxies_CE = nn.Parameter(torch.randn(num_classes, embedding_dim, generator=generator))
        self.margin, self.scale = margin, scale

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar: the mean over the batch.

        Args:
            embeddings_IE: float32 [I, E], l2-normalised.
            labels_I: int64 [I], class of each image, in [0, C).
        """
        cosines_IC = embeddings_IE @ F.normalize(self.proxies_CE, dim=-1).T
        margins_IC = self.margin * F.one_hot(labels_I, len(self.proxies_CE))
        return F.cross_entropy(self.scale * (cosines_IC - margins_IC), labels_I)
