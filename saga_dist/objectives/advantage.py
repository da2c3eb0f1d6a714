"""Group-relative advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class GroupAdvantages(NamedTuple):
    """Advantages of completions, and flags of the groups that have a gradient."""

    advantages: torch.Tensor
    """Floating, same shape as the rewards."""
    contributes: torch.Tensor
    """bool, shape of the rewards without the last axis: True where the rewards of a group vary."""


def group_advantages(rewards: torch.Tensor | Sequence[float], eps: float) -> GroupAdvantages:
    """Returns ``A_g = (r_g - mean r) / (std r + eps)`` within each group, with the sample standard deviation (n - 1).

    A group whose rewards are all equal gets zeros and ``contributes`` False; the coordinator samples another group in
    its place (dynamic sampling). Five rewards of 1 among eight give about +0.72 and -1.21.

    Args:
        rewards: [G] or [P, G], any real dtype, finite; G >= 2.
        eps: positive number, added to the standard deviation.

    Returns:
        Advantages in the floating dtype of the rewards (float32 for integers, booleans and plain numbers), and flags.

    Raises:
        ValueError: the rank is wrong, a group has fewer than two completions, a reward is not finite, or ``eps`` is not
            positive.

    Source: SAGA Eq. 4.
    """
    rewards_PG = torch.as_tensor(rewards)
    if rewards_PG.ndim not in (1, 2):
        raise ValueError(f"rewards have shape {tuple(rewards_PG.shape)}; expected [G] or [P, G]")
    if rewards_PG.shape[-1] < 2:
        raise ValueError(f"a group of {rewards_PG.shape[-1]}; expected at least 2 completions to compare")
    if not eps > 0:
        raise ValueError(f"eps = {eps}; expected a positive number")
    dtype = rewards_PG.dtype if rewards_PG.is_floating_point() else torch.float32
    values_PG = rewards_PG.double()
    if not bool(torch.isfinite(values_PG).all()):
        raise ValueError("rewards hold NaN or infinity; expected finite numbers")
    contributes_P = values_PG.amin(-1) != values_PG.amax(-1)
    spread_P1 = values_PG.std(-1, correction=1, keepdim=True)
    advantages_PG = (values_PG - values_PG.mean(-1, keepdim=True)) / (spread_P1 + eps)
    # The mean of equal rewards may differ from them by rounding, but such a group must have exactly zero advantages.
    advantages_PG = torch.where(contributes_P.unsqueeze(-1), advantages_PG, torch.zeros_like(advantages_PG))
    return GroupAdvantages(advantages_PG.to(dtype), contributes_P)
