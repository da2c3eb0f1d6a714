"""The pooler c_phi: reduces the encoder tokens of an image to one l2-normalised embedding.

Declared deviations from the paper, both off by default: a two-layer key (``key="mlp"``) and layer-normed tokens before
the key (``layer_norm=True``). The values that are pooled are always the tokens without layer norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True)
class PooledOutput:
    """Embeddings of I images and the attention weights that they were pooled with."""

    embeddings_IE: torch.Tensor
    """[I, E] float32, l2-normalised."""
    log_weights_IN: torch.Tensor | None
    """[I, N] float32, log beta; -inf at padding. None for the mean and the max pooler."""


@dataclass(frozen=True, slots=True)
class PoolerConfig:
    """Constructor arguments of a pooler, as saved with an encoder."""

    kind: Literal["mean", "max", "attention"]
    """Pooling over the tokens."""
    key: Literal["linear", "mlp"]
    """Key of the attention pooler: one linear map, or Linear-GELU-Linear."""
    width: int
    """D, width of a token."""
    embedding_dim: int | None
    """E, width of an embedding; None for no projection (E = D)."""
    layer_norm: bool
    """True when tokens are layer-normed before the key."""


class Pooler(nn.Module):
    """Mean, max or attention pooling over tokens, then a linear projection and l2 normalisation, all in float32.

    ``Pooler("mean", width=D, embedding_dim=None)`` has no parameters: it is the normalised mean of the tokens, with
    which the pre-trained tower is evaluated.

    Initial weights: the query is small, so that the attention is nearly uniform at first. The maps are orthogonal, so
    that the projection preserves the cosines of mean-pooled tokens (exactly for E >= D).

    Args:
        kind: pooling over the tokens; ``attention`` is the paper's.
        key: ``linear`` is W_k; ``mlp`` is Linear-GELU-Linear of the same width.
        width: D, width of a token.
        embedding_dim: E, width of an embedding; None for no projection (E = D).
        layer_norm: True to layer-norm tokens, without learned scale, before the key.
        seed: seed of the initial weights; the global random state is neither used nor changed. None leaves the weights
            uninitialised, for a caller that loads them: orthogonal maps of width 4096 take half a minute.
    """

    def __init__(
        self,
        kind: Literal["mean", "max", "attention"] = "attention",
        key: Literal["linear", "mlp"] = "linear",
        *,
        width: int,
        embedding_dim: int | None,
        layer_norm: bool = False,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.config = PoolerConfig(kind, key, width, embedding_dim, layer_norm)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if kind == "attention":
            self.query = nn.Parameter(torch.empty(width))
            if generator is not None:
                nn.init.normal_(self.query, std=1 / math.sqrt(width), generator=generator)
            depth = 1 if key == "linear" else 2
            maps = [_orthogonal(width, width, bias=key == "mlp", generator=generator) for _ in range(depth)]
            self.key = maps[0] if key == "linear" else nn.Sequential(maps[0], nn.GELU(), maps[1])
        self.projection: nn.Module = nn.Identity()
        if embedding_dim is not None:
            self.projection = _orthogonal(width, embedding_dim, bias=True, generator=generator)

    @property
    def embedding_dim(self) -> int:
        """E, the width of an embedding."""
        return self.config.embedding_dim or self.config.width

    def forward(
        self, tokens: Sequence[torch.Tensor] | torch.Tensor, mask_IN: torch.Tensor | None = None
    ) -> PooledOutput:
        """Returns embeddings and log-weights of I images.

        Args:
            tokens: one [N_i, D] tensor per image, or one padded tensor [I, N, D].
            mask_IN: bool [I, N], False at the padding of a padded tensor; None when it has no padding.

        Source: SAGA Appendix B, beta = softmax(q W_k X^T / sqrt(D)), z = normalize(Linear(beta X)).
        """
        tokens_IND, mask_IN = _pad(tokens, mask_IN)
        log_weights_IN = None
        if self.config.kind == "attention":
            log_weights_IN = self._log_weights(tokens_IND, mask_IN)
            pooled_ID = torch.einsum("in,ind->id", log_weights_IN.exp(), _without_padding(tokens_IND, mask_IN, 0.0))
        elif self.config.kind == "max":
            pooled_ID = _without_padding(tokens_IND, mask_IN, -torch.inf).amax(1)
        else:
            lengths_I1 = tokens_IND.shape[1] if mask_IN is None else mask_IN.sum(1, keepdim=True)
            pooled_ID = _without_padding(tokens_IND, mask_IN, 0.0).sum(1) / lengths_I1
        return PooledOutput(F.normalize(self.projection(pooled_ID), dim=-1), log_weights_IN)

    def log_weights(
        self, tokens: Sequence[torch.Tensor] | torch.Tensor, mask_IN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns log beta, float32 [I, N], of detached tokens, so that gradients reach the pooler only.

        Args:
            tokens: tokens as in ``forward``.
            mask_IN: mask as in ``forward``.

        Raises:
            TypeError: the pooler is not the attention pooler.
        """
        if self.config.kind != "attention":
            raise TypeError(f"the {self.config.kind} pooler has no weights to align")
        tokens_IND, mask_IN = _pad(tokens, mask_IN)
        return self._log_weights(tokens_IND.detach(), mask_IN)

    def describe(self) -> dict[str, Any]:
        """Returns the constructor's arguments without the seed, as JSON values."""
        return asdict(self.config)

    def _log_weights(self, tokens_IND: torch.Tensor, mask_IN: torch.Tensor | None) -> torch.Tensor:
        """Returns log beta [I, N]."""
        width = self.config.width
        normed_IND = F.layer_norm(tokens_IND, (width,)) if self.config.layer_norm else tokens_IND
        scores_IN = self.key(normed_IND) @ self.query / math.sqrt(width)
        if mask_IN is not None:
            scores_IN = scores_IN.masked_fill(~mask_IN, -torch.inf)
        return scores_IN.log_softmax(-1)


def _pad(
    tokens: Sequence[torch.Tensor] | torch.Tensor, mask_IN: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns tokens as float32 [I, N, D], with a mask [I, N] when images differ in length."""
    if isinstance(tokens, torch.Tensor):
        return tokens.float(), mask_IN
    lengths = [len(image_ND) for image_ND in tokens]
    if len(set(lengths)) == 1:
        return torch.stack(list(tokens)).float(), None
    padded_IND = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True).float()
    ends_I1 = torch.tensor(lengths, device=padded_IND.device)[:, None]
    return padded_IND, torch.arange(padded_IND.shape[1], device=padded_IND.device) < ends_I1


def _without_padding(tokens_IND: torch.Tensor, mask_IN: torch.Tensor | None, value: float) -> torch.Tensor:
    """Returns the tokens with padding replaced by ``value``."""
    return tokens_IND if mask_IN is None else tokens_IND.masked_fill(~mask_IN[..., None], value)


def _orthogonal(width: int, out: int, *, bias: bool, generator: torch.Generator | None) -> nn.Linear:
    """Returns a linear layer with orthogonal weights and zero bias; uninitialised without a generator."""
    linear = nn.utils.skip_init(nn.Linear, width, out, bias=bias)
    if generator is not None:
        nn.init.orthogonal_(linear.weight, generator=generator)
        if bias:
            nn.init.zeros_(linear.bias)
    return linear
