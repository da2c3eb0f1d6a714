"""The records that move through one training step. Read this file first.

    MicroBatch ──► EncoderTokens ──► Completions ──► ScoredGroup ──► TokenGradients ──► StepResult
     sampler        learner           engine          rollout          replay             learner

Each arrow makes a new frozen record; nothing is changed in place. Shape suffixes, everywhere in this package:

    P pairs            I images          G completions per pair     N tokens of one image (or of a pair, a then b)
    D token width      L DeepStack levels W = (1 + L) * D, the width on the wire
    T completion tokens V vocabulary     H heads    E embedding    C classes    A attributes

A worked example, one pair of the built-in birds (25 tokens an image, D = 128, L = 1, G = 8): its ``EncoderTokens`` are
[50, 256]; the eight ``Completions`` have about 45 tokens each; five are right, so the ``ScoredGroup`` has the rewards
(1,1,1,1,1,0,0,0) and advantages of about +0.72 and -1.21; ``TokenGradients.values_NW`` is again [50, 256].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from saga_dist.errors import TokenError

Grid = tuple[int, int, int]
"""Patch grid of one image before merging: frames, rows, columns."""


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images of one micro-batch and the question whether they show the same class."""

    pair_id: str
    """Unique in the run and equal on every retry, e.g. ``s000012.m0.p03``."""
    image_a: int
    """Index into the split."""
    image_b: int
    label_a: int
    label_b: int

    @property
    def same(self) -> bool:
        """True when both images have the same class: the right verdict."""
        return self.label_a == self.label_b


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A class-balanced set of images and the pairs drawn from it."""

    step: int
    index: int
    """Position within the step: dynamic sampling may need several micro-batches."""
    image_ids: tuple[int, ...]
    """[I] indices into the training split, each at most once."""
    labels: tuple[int, ...]
    """[I] class of each image."""
    augmentation_seed: int
    pairs: tuple[ImagePair, ...]


@dataclass(frozen=True, slots=True)
class EncoderTokens:
    """What the encoder says about the two images of a pair: all that the MLLM ever sees of them."""

    pair_id: str
    values_NW: torch.Tensor
    """[N_a + N_b, (1 + L) * D]: image a then image b; columns are the main tokens, then the L DeepStack maps."""
    lengths: tuple[int, ...]
    """Tokens of each image, (N_a, N_b)."""
    grids: tuple[Grid, ...]
    """Patch grid of each image."""
    num_deepstack: int
    encoder_version: int
    """Number of optimizer steps the encoder had seen."""

    def __post_init__(self) -> None:
        if self.values_NW.ndim != 2:
            raise TokenError(
                f"token values have {self.values_NW.ndim} dimensions", where=f"pair {self.pair_id}", expected="[N, W]"
            )
        if sum(self.lengths) != self.values_NW.shape[0] or len(self.grids) != len(self.lengths):
            raise TokenError(
                f"{self.values_NW.shape[0]} token rows, lengths {self.lengths}, {len(self.grids)} grids",
                where=f"pair {self.pair_id}",
                expected="one length and one grid per image, lengths adding up to the rows",
            )
        if self.values_NW.shape[1] % (1 + self.num_deepstack):
            raise TokenError(
                f"token width {self.values_NW.shape[1]} with {self.num_deepstack} DeepStack levels",
                where=f"pair {self.pair_id}",
                expected="a multiple of 1 + levels",
            )

    @property
    def width(self) -> int:
        """D, the width of one level."""
        return self.values_NW.shape[1] // (1 + self.num_deepstack)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn; part of the task, so that a retry repeats it exactly."""

    num_completions: int
    temperature: float
    """0 means greedy."""
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """One group to generate and score."""

    pair: ImagePair
    tokens: Any
    """A handle: the ``EncoderTokens`` record itself, or a reference into the object store."""
    sampling: Sampling

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.pair.pair_id


@dataclass(frozen=True, slots=True)
class Completions:
    """G completions for one pair, as the engine returned them."""

    pair_id: str
    token_ids: tuple[tuple[int, ...], ...]
    """G ragged sequences, the end-of-turn token included when it was sampled."""
    texts: tuple[str, ...]
    """G decoded texts without special tokens. Untrusted."""
    log_probs: tuple[np.ndarray, ...]
    """G float32 arrays [T_g]: log-probability of each token under the untempered, untruncated model distribution."""
    finish_reasons: tuple[str, ...]
    """``stop`` or ``length``."""
    sampling: Sampling
    encoder_version: int


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """Completions with verdicts, rewards, advantages and the tokens that describe each image."""

    pair: ImagePair
    completions: Completions
    verdicts: tuple[bool | None, ...]
    """G parsed verdicts; None where the text has none."""
    rewards_G: np.ndarray
    """[G] float32, finite; 0 or 1 with the reward ``verdict``."""
    is_correct_G: np.ndarray
    """[G] bool, True where the reward calls the completion right: only such completions have attention targets."""
    advantages_G: np.ndarray
    """[G] float32; all zero when the rewards do not vary."""
    describes_a: tuple[np.ndarray, ...]
    """G bool arrays [T_g]: tokens that describe image a; all False where no description was found."""
    describes_b: tuple[np.ndarray, ...]
    replayed: tuple[np.ndarray, ...] = ()
    """G float32 arrays [T_g], once the group has trained: ``LogProbMismatch.replayed``. Only recordings have it."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.pair.pair_id

    @property
    def contributes(self) -> bool:
        """True when rewards vary within the group, so that it carries a gradient."""
        return bool(self.rewards_G.min() != self.rewards_G.max())

    @property
    def num_tokens(self) -> int:
        """All generated tokens of the group: its share of |T|, by which L_GRPO is divided."""
        return sum(len(ids) for ids in self.completions.token_ids)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A group that was set aside because workers failed on it, again and again: what a pool delivers in its place."""

    pair_id: str
    reason: str
    """The last failure, one line."""
    attempts: int


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """One group to differentiate, with the denominator of the whole step."""

    group: ScoredGroup
    tokens: Any
    """Handle of the pair's ``EncoderTokens`` at today's encoder version: where the gradient is taken."""
    num_tokens_total: int
    """|T|: generated tokens over all groups of the step's buffer."""
    want_attention: bool
    behaviour: Any = None
    """Handle of the older ``EncoderTokens`` the group was generated from; None where they are ``tokens``, or lost."""
    truncate_at: float | None = None
    """Largest importance weight of a token; None: the group is on-policy and every weight is exactly 1. Without
    ``behaviour`` the weight is taken against the engine's own log-probabilities."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.group.pair.pair_id


@dataclass(frozen=True, slots=True)
class LogProbMismatch:
    """How replay and sampler compare on the tokens of one group."""

    log_prob_gap: float
    """Mean |log p_engine - log p_replay| with the same encoder tokens: two programs, one number."""
    mismatch_kl: float
    """Estimate of KL(engine || replay) per token with the same encoder tokens, mean of e^d - 1 - d, never negative."""
    weight_quantiles: tuple[float, ...] = ()
    """Importance weights before truncation at ``WEIGHT_QUANTILES``; empty where all are exactly 1."""
    truncated_share: float = 0.0
    """Share of tokens whose weight was cut."""
    replayed: tuple[np.ndarray, ...] = field(default=(), compare=False)
    """G float32 arrays [T_g]: what replay makes of each token with the encoder tokens that the engine had, to be held
    against ``Completions.log_probs``; empty where no model replayed."""


WEIGHT_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class TokenGradients:
    """dL_GRPO / d(encoder tokens) of one pair, and where the MLLM looked."""

    pair_id: str
    values_NW: torch.Tensor
    """Same shape as the tokens, float32."""
    attention_a_N: torch.Tensor | None
    """[N_a] float32, mean over the correct completions of the attention target; None without one."""
    attention_b_N: torch.Tensor | None
    negative_entropy: float
    """Mean over the same completions of sum(alpha log alpha), images a and b added: the constant part of L_KL."""
    num_attended: int
    """Correct completions with a description of both images: the group's weight in the buffer-wide mean of L_KL."""
    loss: float
    """This group's part of L_GRPO (denominator included)."""
    num_tokens: int
    mismatch: LogProbMismatch
    encoder_version: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, as plain numbers."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
