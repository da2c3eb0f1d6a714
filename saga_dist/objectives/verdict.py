"""The verdict loss: how unlikely the frozen MLLM finds the right verdict, without sampling a completion.

It is ours and not the paper's: a baseline that shows what GRPO's sampled reasoning adds to the verdict itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def verdict_loss(log_p_right: torch.Tensor, log_p_wrong: torch.Tensor) -> torch.Tensor:
    """Returns ``-log(p_right / (p_right + p_wrong))``, elementwise, at least 0: log 2 when both are equally likely.

    The two probabilities need not add up to 1, because a model may continue with something that is no verdict. Their
    ratio is what is trained, so that all other text neither gains nor loses.

    Args:
        log_p_right: any shape, log-probability of the tokens of the right verdict, nats.
        log_p_wrong: same shape, the same of the wrong verdict.

    Raises:
        ValueError: the shapes differ.
    """
    if log_p_right.shape != log_p_wrong.shape:
        raise ValueError(
            f"log-probabilities have shapes {tuple(log_p_right.shape)} and {tuple(log_p_wrong.shape)}; "
            "expected the same"
        )
    return F.softplus(log_p_wrong - log_p_right)
