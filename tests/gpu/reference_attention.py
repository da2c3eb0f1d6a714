"""Packed attention in plain torch, for any device and dtype: what the kernels are compared with."""

from __future__ import annotations

import torch

from saga_dist.models.families.attention_backends import Attended, AttentionBackend, Gradients, Segments


class ReferenceAttention(AttentionBackend):
    """Computes scores, softmax and their derivatives as written in a textbook, one sequence after the other."""

    def forward(
        self,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Attended:
        out_hnRd = torch.zeros_like(query_hnRd)
        lse_hnR = torch.zeros(query_hnRd.shape[:3], device=query_hnRd.device)
        for own, to in zip(queries.spans, keys.spans, strict=True):
            scores_hnTK = _scores(query_hnRd[:, :, own], key_hKd[:, to], causal=causal, scale=scale)
            lse_hnR[:, :, own] = scores_hnTK.logsumexp(-1)
            weights_hnTK = scores_hnTK.softmax(-1)
            out_hnRd[:, :, own] = (weights_hnTK @ value_hKd[:, None, to].float()).to(out_hnRd.dtype)
        return out_hnRd, lse_hnR

    def backward(
        self,
        gradient_hnRd: torch.Tensor,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        attended: Attended,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Gradients:
        out_hnRd, lse_hnR = attended
        gradients = tuple(torch.zeros_like(tensor) for tensor in (query_hnRd, key_hKd, value_hKd))
        for own, to in zip(queries.spans, keys.spans, strict=True):
            query, key, value = query_hnRd[:, :, own].float(), key_hKd[:, None, to].float(), value_hKd[:, None, to]
            scores = _scores(query_hnRd[:, :, own], key_hKd[:, to], causal=causal, scale=scale)
            weights = (scores - lse_hnR[:, :, own, None]).exp()
            out_gradient = gradient_hnRd[:, :, own].float()
            inner = (out_gradient * out_hnRd[:, :, own].float()).sum(-1, keepdim=True)
            score_gradient = weights * (out_gradient @ value.float().mT - inner) * scale
            gradients[0][:, :, own] = (score_gradient @ key).to(query_hnRd.dtype)
            gradients[1][:, to] = (score_gradient.mT @ query).sum(1).to(key_hKd.dtype)
            gradients[2][:, to] = (weights.mT @ out_gradient).sum(1).to(value_hKd.dtype)
        return gradients[0], gradients[1], gradients[2]


def _scores(query_hnTd: torch.Tensor, key_hKd: torch.Tensor, *, causal: bool, scale: float) -> torch.Tensor:
    scores_hnTK = query_hnTd.float() @ key_hKd[:, None].float().mT * scale
    if not causal:
        return scores_hnTK
    later_TK = torch.ones(scores_hnTK.shape[-2:], dtype=torch.bool, device=scores_hnTK.device).triu(1)
    return scores_hnTK.masked_fill(later_TK, -torch.inf)
