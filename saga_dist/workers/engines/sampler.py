"""Sampling of the next token: temperature, top-p, and the inverse cumulative distribution at a given uniform number.

Sorting the vocabulary takes most of the time (1.4 of 1.5 s for 64 rows of 150,000 tokens on one core). The tokens
within top-p are few, so only the ``CANDIDATES`` most likely tokens are sorted at first, and rows that need more tokens
are sorted completely. Both ways give the same token.
"""

from __future__ import annotations

import torch

CANDIDATES = 64
"""Number of most likely tokens that are sorted first."""


def sample(
    log_probs_BV: torch.Tensor, *, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniforms_B: torch.Tensor
) -> torch.Tensor:
    """Returns the sampled token id of each row, int64 [B].

    Args:
        log_probs_BV: float, -inf for forbidden tokens; need not be normalised.
        temperature_B: float64; 0 selects the most likely token.
        top_p_B: float64; tokens are candidates in descending order until their probabilities reach this sum.
        uniforms_B: float64 in [0, 1), the random number of each row.
    """
    greedy_B = temperature_B <= 0
    scale_B1 = torch.where(greedy_B, 1.0, temperature_B)[:, None]
    # With a share of 0 only the most likely token is a candidate.
    share_B = torch.where(greedy_B, 0.0, top_p_B)
    total_B1 = (log_probs_BV.double() / scale_B1).logsumexp(-1, keepdim=True)
    ids_BK, log_probs_BK = _top_k(log_probs_BV, min(CANDIDATES, log_probs_BV.shape[1]))
    probs_BK = (log_probs_BK.double() / scale_B1 - total_B1).exp()
    sampled_B = ids_BK.gather(1, _ranks(probs_BK, share_B, uniforms_B))[:, 0]
    needs_all_B = _needs_all(log_probs_BK, probs_BK, share_B)
    if ids_BK.shape[1] < log_probs_BV.shape[1] and bool(needs_all_B.any()):
        # Ties are broken by id (stable sort), so that the result does not depend on the device's sorting algorithm.
        log_probs_OV, ids_OV = log_probs_BV[needs_all_B].sort(dim=-1, descending=True, stable=True)
        probs_OV = (log_probs_OV.double() / scale_B1[needs_all_B] - total_B1[needs_all_B]).exp()
        ranks_O1 = _ranks(probs_OV, share_B[needs_all_B], uniforms_B[needs_all_B])
        sampled_B[needs_all_B] = ids_OV.gather(1, ranks_O1)[:, 0]
    return sampled_B


def _top_k(log_probs_BV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and log-probabilities, [B, K] each, of the most likely tokens in descending order, ties by id."""
    ids_BK = log_probs_BV.topk(count, sorted=False).indices.sort(dim=-1).values
    log_probs_BK, order_BK = log_probs_BV.gather(1, ids_BK).sort(dim=-1, descending=True, stable=True)
    return ids_BK.gather(1, order_BK), log_probs_BK


def _needs_all(log_probs_BK: torch.Tensor, probs_BK: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    """Returns bool [B], True when a token outside the K most likely may be a candidate.

    Tokens as likely as the last of the K do not count, because other tokens of equal probability may be missing here.
    """
    above_BK = log_probs_BK > log_probs_BK[:, -1:]
    mass_B = (probs_BK * above_BK).sum(-1)
    return (mass_B < share_B) | ~above_BK[:, 0]


def _ranks(probs_BK: torch.Tensor, share_B: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Returns the sampled rank, int64 [B, 1], among tokens in descending order of probability."""
    before_BK = probs_BK.cumsum(-1) - probs_BK
    is_candidate_BK = before_BK < share_B[:, None]
    is_candidate_BK[:, 0] = True
    cumulative_BK = probs_BK.masked_fill(~is_candidate_BK, 0.0).cumsum(-1)
    ranks_B1 = torch.searchsorted(cumulative_BK, (uniforms_B * cumulative_BK[:, -1])[:, None], right=True)
    # Rounding may move the target past the last candidate, and a token of probability 0 must not be sampled.
    return torch.minimum(ranks_B1, (is_candidate_BK & (probs_BK > 0)).sum(-1, keepdim=True) - 1)
