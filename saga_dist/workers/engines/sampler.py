"""Sampling of the next token: temperature, top-p, and the inverse of the cumulative distribution at a given number.

Sorting the vocabulary is most of that work (1.4 of 1.5 s for 64 rows of 150,000 tokens on one core). The tokens of
top-p are few, so the likeliest ``CANDIDATES`` are looked at first, and rows that need more are sorted whole; either way
gives the same token.
"""

from __future__ import annotations

import torch

CANDIDATES = 64
"""Most likely tokens that are looked at first."""


def sample(
    log_probs_BV: torch.Tensor, *, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniforms_B: torch.Tensor
) -> torch.Tensor:
    """Returns one token id per row [B].

    Args:
        log_probs_BV: float, -inf where a token is forbidden; need not be normalised.
        temperature_B: float64; 0 takes the most likely token.
        top_p_B: float64; the most likely tokens that reach this share together stay in, the rest is out.
        uniforms_B: float64 in [0, 1).
    """
    greedy_B = temperature_B <= 0
    scale_B1 = torch.where(greedy_B, 1.0, temperature_B)[:, None]
    # Of a greedy row the first is in, and nothing else.
    share_B = torch.where(greedy_B, 0.0, top_p_B)
    total_B1 = (log_probs_BV.double() / scale_B1).logsumexp(-1, keepdim=True)
    ids_BK, log_probs_BK = _likeliest(log_probs_BV, min(CANDIDATES, log_probs_BV.shape[1]))
    probs_BK = (log_probs_BK.double() / scale_B1 - total_B1).exp()
    drawn_B = ids_BK.gather(1, _ranks(probs_BK, share_B, uniforms_B))[:, 0]
    open_B = _reaches_beyond(log_probs_BK, probs_BK, share_B)
    if ids_BK.shape[1] < log_probs_BV.shape[1] and bool(open_B.any()):
        # Ties are broken by id (stable sort): the answer does not depend on the sorting algorithm of the device.
        log_probs_OV, ids_OV = log_probs_BV[open_B].sort(dim=-1, descending=True, stable=True)
        probs_OV = (log_probs_OV.double() / scale_B1[open_B] - total_B1[open_B]).exp()
        drawn_B[open_B] = ids_OV.gather(1, _ranks(probs_OV, share_B[open_B], uniforms_B[open_B]))[:, 0]
    return drawn_B


def _likeliest(log_probs_BV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and log-probabilities [B, K] of the most likely tokens, equal ones by id."""
    ids_BK = log_probs_BV.topk(count, sorted=False).indices.sort(dim=-1).values
    log_probs_BK, order_BK = log_probs_BV.gather(1, ids_BK).sort(dim=-1, descending=True, stable=True)
    return ids_BK.gather(1, order_BK), log_probs_BK


def _reaches_beyond(log_probs_BK: torch.Tensor, probs_BK: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    """Returns where a token after the K likeliest may be in [B]; of those as likely as the last, some are not here."""
    above_BK = log_probs_BK > log_probs_BK[:, -1:]
    mass_B = (probs_BK * above_BK).sum(-1)
    return (mass_B < share_B) | ~above_BK[:, 0]


def _ranks(probs_BK: torch.Tensor, share_B: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Returns the rank [B, 1] drawn among tokens that stand in the order of their probabilities."""
    before_BK = probs_BK.cumsum(-1) - probs_BK
    is_in_BK = before_BK < share_B[:, None]
    is_in_BK[:, 0] = True
    cumulative_BK = probs_BK.masked_fill(~is_in_BK, 0.0).cumsum(-1)
    ranks_B1 = torch.searchsorted(cumulative_BK, (uniforms_B * cumulative_BK[:, -1])[:, None], right=True)
    # Rounding may carry the target past the last token that is in, and no token without probability is drawn.
    return torch.minimum(ranks_B1, (is_in_BK & (probs_BK > 0)).sum(-1, keepdim=True) - 1)
