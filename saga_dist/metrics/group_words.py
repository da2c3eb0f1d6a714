"""A scored group in words, for the terminal view of a run and for the loggers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saga_dist.utils.printable import printable, printable_lines

if TYPE_CHECKING:
    import numpy as np

    from saga_dist.types import ScoredGroup


@dataclass(frozen=True, slots=True, eq=False)
class GroupSample:
    """A group of a step with its images, for the loggers."""

    step: int
    """Optimizer step, counted from 1."""
    group: ScoredGroup
    """The group."""
    images: tuple[np.ndarray, np.ndarray]
    """Images a and b, uint8 [H, W, 3], before augmentation."""


def shown_group(groups: Sequence[ScoredGroup]) -> ScoredGroup | None:
    """Returns the group of a step that is shown for all: the first with a GRPO gradient, else the first; None of none.

    Args:
        groups: groups of the step, in the order of submission.
    """
    return next((group for group in groups if group.contributes), groups[0] if groups else None)


def group_in_words(group: ScoredGroup) -> str:
    """Returns one line: the pair, its truth, how many completions were right, the mean reward, and what it trains."""
    pair, verdicts = group.pair, group.verdicts
    num_right = sum(verdict == pair.same for verdict in verdicts)
    num_silent = sum(verdict is None for verdict in verdicts)
    counts = (
        f"{num_right} right",
        f"{len(verdicts) - num_right - num_silent} wrong",
        f"{num_silent} without a verdict",
    )
    told = ", ".join(count for count in counts if not count.startswith("0 "))
    return printable(
        f"pair {pair.pair_id}, images {pair.image_a} and {pair.image_b}, "
        f"{'the same class' if pair.same else 'different classes'}: {len(verdicts)} completions, {told}; "
        f"mean reward {float(group.rewards_G.mean()):.2f}, rewards "
        f"{'vary, so it has a GRPO gradient' if group.contributes else 'are equal, so it has no GRPO gradient'}"
    )


def completion_lines(group: ScoredGroup) -> list[tuple[str, str]]:
    """Returns verdict, reward and advantage of each completion on one line, with the text of the completion.

    The texts are untrusted: characters that are not printable are escaped, line breaks stay.
    """
    words = {None: "no verdict", True: "same", False: "different"}
    return [
        (
            f"{words[verdict]} ({'right' if verdict == group.pair.same else 'not right'}), "
            f"reward {float(reward):g}, advantage {float(advantage):+.2f}",
            printable_lines(text),
        )
        for verdict, reward, advantage, text in zip(
            group.verdicts, group.rewards_G, group.advantages_G, group.completions.texts, strict=True
        )
    ]


def group_text(group: ScoredGroup) -> str:
    """Returns the group in words, then every completion below its verdict, reward and advantage."""
    return "\n\n".join([group_in_words(group), *(f"{head}\n{text}" for head, text in completion_lines(group))])
