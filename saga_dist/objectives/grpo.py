"""The token-level policy-gradient loss, divided by the number of tokens in the step's buffer.

Differences from GRPO as usually written: training is strictly on-policy with one update per batch, so the ratio is 1
and nothing is clipped; there is no reference model; every generated token of the step's buffer has the same weight.
Asynchronous runs are off-policy by a few encoder versions, and multiply each term by a truncated importance weight (a
declared extension of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def grpo_loss(
    log_probs: torch.Tensor | Sequence[torch.Tensor],
    mask_GT: torch.Tensor | None,
    advantages_G: torch.Tensor,
    num_tokens_total: int,
    weights: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Returns the scalar ``-(1/|T|) sum_g sum_t A_g w_gt log pi(y_gt)`` of these completions.

    |T| is the number of generated tokens in the whole step's buffer, so that the results of several calls add up to the
    loss of the step.

    Args:
        log_probs: floating, padded [G, T] with ``mask_GT``, or G ragged tensors [T_g] with ``mask_GT`` None.
        mask_GT: bool [G, T], True at generated tokens. Values at False positions, NaN included, have no effect.
        advantages_G: [G], treated as constants.
        num_tokens_total: |T|, at least the number of tokens given here.
        weights: importance weights, shaped like ``log_probs``, treated as constants; None for exactly 1 (on-policy).

    Raises:
        ValueError: shapes do not fit, or ``num_tokens_total`` is smaller than the tokens given.

    Source: SAGA Eq. 5.
    """
    log_probs_GT, mask_GT = _padded(log_probs, mask_GT, "log_probs")
    num_completions = log_probs_GT.shape[0]
    if advantages_G.shape != (num_completions,):
        raise ValueError(f"advantages have shape {tuple(advantages_G.shape)}; expected ({num_completions},)")
    num_tokens = int(mask_GT.sum())
    if num_tokens_total < max(num_tokens, 1):
        raise ValueError(
            f"num_tokens_total = {num_tokens_total} with {num_tokens} tokens here; expected the whole buffer's"
        )
    factors_GT = advantages_G.detach().to(log_probs_GT).unsqueeze(1).expand_as(log_probs_GT)
    if weights is not None:
        given_mask_GT = mask_GT if isinstance(weights, torch.Tensor) else None
        weights_GT, weights_mask_GT = _padded(weights, given_mask_GT, "weights")
        if weights_GT.shape != log_probs_GT.shape or not torch.equal(weights_mask_GT, mask_GT):
            raise ValueError("weights and log_probs have different lengths; expected one weight per generated token")
        factors_GT = factors_GT * weights_GT.detach().to(log_probs_GT)
    terms_GT = torch.where(mask_GT, factors_GT * log_probs_GT.masked_fill(~mask_GT, 0.0), 0.0)
    return -terms_GT.sum() / num_tokens_total


def importance_weights(
    learner_log_probs: torch.Tensor, behaviour_log_probs: torch.Tensor, truncate_at: float
) -> torch.Tensor:
    """Returns ``min(pi_learner / pi_behaviour, truncate_at)`` per token, without gradient; exactly 1 where both agree.

    Both log-probabilities must be of the same distribution (same temperature, same truncation). Truncation of the
    weights bounds the variance, and biases towards smaller steps.

    Args:
        learner_log_probs: any shape, with the present encoder. Padding must be finite (zeros).
        behaviour_log_probs: same shape, with the encoder that the tokens were sampled with.
        truncate_at: largest weight, at least 1, so that on-policy tokens have weight 1.

    Raises:
        ValueError: shapes differ, ``truncate_at`` < 1, or a log-probability is not finite.
    """
    if learner_log_probs.shape != behaviour_log_probs.shape:
        raise ValueError(
            f"log-probabilities have shapes {tuple(learner_log_probs.shape)} and {tuple(behaviour_log_probs.shape)}; "
            "expected the same"
        )
    if not truncate_at >= 1:
        raise ValueError(f"truncate_at = {truncate_at}; expected at least 1")
    log_ratio = learner_log_probs.detach() - behaviour_log_probs.detach().to(learner_log_probs)
    if not bool(torch.isfinite(log_ratio).all()):
        raise ValueError("a log-probability is NaN or infinite; expected finite values, zeros in the padding")
    return log_ratio.exp().clamp(max=truncate_at)


def _padded(
    values: torch.Tensor | Sequence[torch.Tensor], mask_GT: torch.Tensor | None, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns values and mask, [G, T] each, from padded or ragged values.

    Raises:
        ValueError: shapes or mask do not fit.
    """
    if isinstance(values, torch.Tensor):
        if mask_GT is None or values.ndim != 2 or mask_GT.shape != values.shape or mask_GT.dtype != torch.bool:
            raise ValueError(f"padded {name} of shape {tuple(values.shape)}; expected [G, T] and a bool mask [G, T]")
        return values, mask_GT
    rows = list(values)
    if mask_GT is not None or not rows or any(row.ndim != 1 for row in rows):
        raise ValueError(f"ragged {name}; expected one or more tensors [T_g] and no mask")
    lengths_G = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded_GT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded_GT, torch.arange(padded_GT.shape[1], device=padded_GT.device) < lengths_G.unsqueeze(1)
