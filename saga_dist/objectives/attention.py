"""Attention alignment: the pooler learns to look where the MLLM looked while it described the image.

The pooler's weights beta do not depend on the completion. So the mean over completions of KL(alpha_g || beta) needs
only two statistics of the targets: their mean, and their mean negative entropy,

    (1/n) sum_g KL(alpha_g || beta) = (1/n) sum_g sum_i alpha_gi log alpha_gi  -  sum_i mean(alpha)_i log beta_i .

That is what replay workers send, instead of one map per completion. Targets are constants; the gradient goes to beta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class AttentionStatistics(NamedTuple):
    """All that the alignment loss needs to know about the targets of one image."""

    mean_target_N: torch.Tensor
    mean_negative_entropy: torch.Tensor
    """Scalar: mean over completions of sum_i alpha_i log alpha_i, at most 0."""


def renormalised_attention(attention_THN: torch.Tensor) -> torch.Tensor:
    """Returns [T, N]: attention of each row averaged over heads, then scaled to sum to 1 over the image's columns.

    A row that puts nothing at all on the image (underflow) tells nothing about places and becomes uniform.

    Args:
        attention_THN: [T, H, N] probabilities of T query tokens at the N columns of one image; or [T, N], heads
            averaged already. Half precision is raised to float32 first. No gradient is kept.

    Raises:
        ValueError: wrong rank, no column, or negative or non-finite entries.
    """
    if attention_THN.ndim not in (2, 3) or not attention_THN.is_floating_point() or attention_THN.shape[-1] == 0:
        raise ValueError(
            f"attention is {attention_THN.dtype} {tuple(attention_THN.shape)}; expected floating [T, H, N] or [T, N]"
        )
    rows = _at_least_float32(attention_THN.detach())
    rows_TN = rows.mean(1) if rows.ndim == 3 else rows
    if not bool((torch.isfinite(rows_TN) & (rows_TN >= 0)).all()):
        raise ValueError("attention holds negative, NaN or infinite entries; expected probabilities")
    mass_T1 = rows_TN.sum(-1, keepdim=True)
    uniform = 1.0 / rows_TN.shape[-1]
    return torch.where(mass_T1 > 0, rows_TN / torch.where(mass_T1 > 0, mass_T1, 1.0), uniform)


def attention_targets(rows_TN: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the target [N] of one completion: the mean of its renormalised rows over the description tokens.

    Args:
        rows_TN: [T, N] from ``renormalised_attention``.
        mask_T: bool [T], True at tokens that describe this image; None when the rows are those tokens.

    Raises:
        ValueError: shapes do not fit, or no token is selected (such a completion has no target: skip it).

    Source: SAGA Eq. 6.
    """
    if rows_TN.ndim != 2 or (mask_T is not None and (mask_T.shape != rows_TN.shape[:1] or mask_T.dtype != torch.bool)):
        raise ValueError(f"rows have shape {tuple(rows_TN.shape)}; expected [T, N] and a bool mask [T] or None")
    selected_TN = rows_TN if mask_T is None else rows_TN[mask_T]
    if selected_TN.shape[0] == 0:
        raise ValueError("no description token is selected; expected at least one")
    return selected_TN.mean(0)


def attention_statistics(targets_GN: torch.Tensor) -> AttentionStatistics:
    """Returns the mean target and the mean negative entropy over the completions of one image.

    Args:
        targets_GN: [G', N], one target per correct completion that describes the image; rows sum to 1.
    """
    if targets_GN.ndim != 2 or targets_GN.shape[0] == 0:
        raise ValueError(f"targets have shape {tuple(targets_GN.shape)}; expected [G, N] with at least one completion")
    targets_GN = targets_GN.detach()
    return AttentionStatistics(targets_GN.mean(0), torch.xlogy(targets_GN, targets_GN).sum(-1).mean())


def attention_kl(target_N: torch.Tensor, beta_N: torch.Tensor) -> torch.Tensor:
    """Returns ``KL(target || beta) = sum_i target_i log(target_i / beta_i)`` in nats; gradient into beta only.

    Args:
        target_N: [..., N] probabilities.
        beta_N: same shape, positive: the pooler's softmax weights.
    """
    _check_same_shape(target_N, beta_N)
    target_N = target_N.detach()
    return (torch.xlogy(target_N, target_N) - target_N * beta_N.log()).sum(-1)


def attention_alignment_loss(
    mean_target_N: torch.Tensor, mean_negative_entropy: torch.Tensor | float, log_beta_N: torch.Tensor
) -> torch.Tensor:
    """Returns the mean over completions of ``KL(alpha_g || beta)`` for one image, from the statistics of its targets.

    The two images of a pair add: call it for each, with their negative entropies apart, or with the sum of both once
    and 0 the other time.

    Args:
        mean_target_N: [..., N].
        mean_negative_entropy: [...] or a number; constant, it only makes the value a divergence.
        log_beta_N: [..., N] log-softmax of the pooler's scores (log space: no weight underflows to log 0).

    Source: SAGA Eq. 7.
    """
    _check_same_shape(mean_target_N, log_beta_N)
    if isinstance(mean_negative_entropy, torch.Tensor):
        mean_negative_entropy = mean_negative_entropy.detach()
    return mean_negative_entropy - (mean_target_N.detach().to(log_beta_N) * log_beta_N).sum(-1)


def buffer_alignment_loss(
    losses_P: torch.Tensor, num_completions_P: torch.Tensor, num_completions_total: int
) -> torch.Tensor:
    """Returns the mean over the buffer's correct completions, from per-group means: ``sum_p n_p loss_p / n``.

    Args:
        losses_P: [P] each group's mean (both images added), with gradient.
        num_completions_P: [P] completions behind each mean.
        num_completions_total: n over the whole buffer, so that partial sums of several calls add up. At least 1.
    """
    if losses_P.ndim != 1 or num_completions_P.shape != losses_P.shape:
        raise ValueError(f"losses and counts have shapes {tuple(losses_P.shape)}, {tuple(num_completions_P.shape)}")
    if num_completions_total < max(int(num_completions_P.sum()), 1):
        raise ValueError(f"num_completions_total = {num_completions_total}; expected the count of the whole buffer")
    return (losses_P * num_completions_P.to(losses_P)).sum() / num_completions_total


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_same_shape(first: torch.Tensor, second: torch.Tensor) -> None:
    if first.shape != second.shape or first.ndim == 0:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)}; expected the same, [..., N]")
