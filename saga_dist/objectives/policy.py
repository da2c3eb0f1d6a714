"""Log-probabilities of generated tokens under the policy: the model itself, or the distribution that was sampled from.

Completions are sampled at a temperature T and from the most likely tokens whose probabilities sum to top-p. The paper
does not say which of both distributions L_GRPO differentiates; public implementations differ. ``objective.policy``
chooses: ``model`` (the default: temperature 1, whole vocabulary) or ``sampling``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def model_log_probs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Returns the log-probabilities [R] of the targets at temperature 1 over the whole vocabulary.

    Args:
        logits_RV: floating [R, V].
        targets_R: int64 [R], token ids.
    """
    return -F.cross_entropy(logits_RV, targets_R, reduction="none")


def sampling_log_probs(
    logits_RV: torch.Tensor,
    targets_R: torch.Tensor,
    *,
    temperature_R: torch.Tensor,
    top_p_R: torch.Tensor,
    forbidden_ids: Sequence[int] = (),
) -> torch.Tensor:
    """Returns the log-probabilities [R] of the targets in the distribution that they were sampled from.

    The choice of the tokens within top-p is treated as a constant, and a target is always among them: where two
    programs round differently, the last token of one may be outside of the other's.

    Args:
        logits_RV: floating [R, V].
        targets_R: int64 [R], token ids.
        temperature_R: floating [R], sampling temperature; 0 (greedy decoding) counts as 1 without a cut at top-p.
        top_p_R: floating [R], probability mass that is sampled from, in (0, 1].
        forbidden_ids: tokens that are never sampled.
    """
    greedy_R = temperature_R <= 0
    logits_RV = logits_RV / torch.where(greedy_R, 1.0, temperature_R)[:, None].to(logits_RV)
    top_p_R = torch.where(greedy_R, 1.0, top_p_R)
    if forbidden_ids:
        ids = torch.tensor(forbidden_ids, device=logits_RV.device)
        logits_RV = logits_RV.index_fill(1, ids, -torch.inf)
    if bool((top_p_R < 1).any()):
        logits_RV = logits_RV.masked_fill(~_nucleus(logits_RV.detach(), targets_R, top_p_R), -torch.inf)
    return model_log_probs(logits_RV, targets_R)


def _nucleus(logits_RV: torch.Tensor, targets_R: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """Returns bool [R, V]: the most likely tokens, each of which follows less than top-p, and the targets."""
    probs_RV, order_RV = logits_RV.softmax(-1, dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    before_RV = probs_RV.cumsum(-1) - probs_RV
    within_RV = (before_RV < top_p_R[:, None].to(before_RV)) | (top_p_R >= 1)[:, None]
    kept_RV = torch.zeros_like(within_RV).scatter_(1, order_RV, within_RV)
    return kept_RV.scatter_(1, targets_R[:, None], True)
