"""Attention alignment: trains the pooler's attention towards the MLLM's attention while it describes the image.

The pooler's weights beta do not depend on the completion. So the mean over completions of KL(alpha_g || beta) needs
only two statistics of the targets alpha_g, their mean and their mean negative entropy:

    (1/n) sum_g KL(alpha_g || beta) = (1/n) sum_g sum_i alpha_gi log alpha_gi  -  sum_i mean(alpha)_i log beta_i .

Replay workers return these statistics instead of one target per completion. Targets are constants; gradients flow into
beta only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class AttentionStatistics(NamedTuple):
    """Statistics of the targets of one image, sufficient for the alignment loss."""

    mean_target_N: torch.Tensor
    """[N], mean over completions of the targets; sums to 1."""
    mean_negative_entropy: torch.Tensor
    """Scalar, mean over completions of sum_i alpha_i log alpha_i in nats, at most 0."""


def renormalised_attention(attention_THN: torch.Tensor) -> torch.Tensor:
    """Returns the attention of each query token, [T, N]: averaged over heads, then scaled to sum to 1 over the image.

    A row whose attention to the image is all zero (underflow) becomes uniform.

    Args:
        attention_THN: [T, H, N], attention probabilities of T query tokens at the N tokens of one image, or [T, N],
            already averaged over heads. Half precision is converted to float32. It is detached from the graph.

    Raises:
        ValueError: the rank is wrong, N is 0, or an entry is negative or not finite.
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
    """Returns the target of one completion, [N]: the mean of its renormalised attention over the description tokens.

    Args:
        rows_TN: [T, N], result of ``renormalised_attention``.
        mask_T: bool [T], True at tokens that describe this image; None when all rows are such tokens.

    Raises:
        ValueError: shapes do not fit, or no token is selected; such a completion has no target.

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
        targets_GN: [G', N], one target per correct completion that describes the image; each row sums to 1.

    Raises:
        ValueError: the shape is wrong, or there is no completion.
    """
    if targets_GN.ndim != 2 or targets_GN.shape[0] == 0:
        raise ValueError(f"targets have shape {tuple(targets_GN.shape)}; expected [G, N] with at least one completion")
    targets_GN = targets_GN.detach()
    return AttentionStatistics(targets_GN.mean(0), torch.xlogy(targets_GN, targets_GN).sum(-1).mean())


def attention_kl(target_N: torch.Tensor, beta_N: torch.Tensor) -> torch.Tensor:
    """Returns ``KL(target || beta) = sum_i target_i log(target_i / beta_i)`` in nats; differentiable in beta only.

    Args:
        target_N: [..., N], probabilities.
        beta_N: same shape, positive, the pooler's softmax weights.
    """
    _check_same_shape(target_N, beta_N)
    target_N = target_N.detach()
    return (torch.xlogy(target_N, target_N) - target_N * beta_N.log()).sum(-1)


def attention_alignment_loss(
    mean_target_N: torch.Tensor, mean_negative_entropy: torch.Tensor | float, log_beta_N: torch.Tensor
) -> torch.Tensor:
    """Returns the mean over completions of ``KL(alpha_g || beta)`` for one image, from the statistics of its targets.

    The losses of the two images of a pair are added. Their negative entropies may be passed separately, or their sum
    with one image and 0 with the other.

    Args:
        mean_target_N: [..., N], mean target.
        mean_negative_entropy: [...] or a number, mean negative entropy of the targets. It is a constant, which changes
            the value of the loss and not its gradient.
        log_beta_N: [..., N], log-softmax of the pooler's scores; in log space no weight underflows to log 0.

    Source: SAGA Eq. 7.
    """
    _check_same_shape(mean_target_N, log_beta_N)
    if isinstance(mean_negative_entropy, torch.Tensor):
        mean_negative_entropy = mean_negative_entropy.detach()
    return mean_negative_entropy - (mean_target_N.detach().to(log_beta_N) * log_beta_N).sum(-1)


def buffer_alignment_loss(
    losses_P: torch.Tensor, num_completions_P: torch.Tensor, num_completions_total: int
) -> torch.Tensor:
    """Returns the mean over the buffer's correct completions, from the means of groups: ``sum_p n_p loss_p / n``.

    Args:
        losses_P: [P], mean of each group, both images added; differentiable.
        num_completions_P: [P], number of completions in each mean.
        num_completions_total: n, number of completions in the whole buffer, at least 1, so that the results of several
            calls add up.

    Raises:
        ValueError: shapes do not fit, or ``num_completions_total`` is smaller than the counts given.
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
