"""The records that move through one training step. Read this file first.

    MicroBatch ──► EncoderTokens ──► Completions ──► ScoredGroup ──► TokenGradients ──► StepResult
     sampler        learner           engine          rollout          replay             learner

Each arrow makes a new frozen record; nothing is changed in place. Names of tensors and arrays end in their shape:

    P pairs            I images          G completions per pair     N tokens of one image (or of a pair, a then b)
    D token width      L DeepStack levels W = (1 + L) * D, the width on the wire
    T completion tokens V vocabulary     H heads    E embedding    C classes    A attributes

A worked example, one pair of the built-in birds (25 tokens per image, D = 128, L = 1, G = 8): the values of its
``EncoderTokens`` are [50, 256]; the eight completions have about 45 tokens each; five have the right verdict, so the
``ScoredGroup`` has the rewards (1, 1, 1, 1, 1, 0, 0, 0) and advantages of about +0.72 and -1.21;
``TokenGradients.values_NW`` is [50, 256] like the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from saga_dist.errors import TokenError

Grid = tuple[int, int, int]
"""Patch grid of one image before patches are merged into tokens: (frames, rows, columns)."""


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Two images whose tokens the MLLM compares: do they show the same class?"""

    pair_id: str
    """Id that is unique in the run and the same on every retry, e.g. ``s000013.m0.p03``."""
    image_a: int
    """Index of image a in its split."""
    image_b: int
    """Index of image b in its split."""
    label_a: int
    """Class of image a, in [0, C)."""
    label_b: int
    """Class of image b, in [0, C)."""

    @property
    def same(self) -> bool:
        """True when both images have the same class; this is the right verdict."""
        return self.label_a == self.label_b


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A class-balanced set of training images and the pairs drawn from it."""

    step: int
    """Optimizer steps done before the step of this micro-batch."""
    index: int
    """Index of the micro-batch within its step, from 0; dynamic sampling may need several."""
    image_ids: tuple[int, ...]
    """[I] indices into the training split, each at most once."""
    labels: tuple[int, ...]
    """[I] class of each image, in [0, C)."""
    augmentation_seed: int
    """Seed of the random augmentation of the images."""
    pairs: tuple[ImagePair, ...]
    """[P] pairs of these images, half of them same-class; empty without rollouts."""


@dataclass(frozen=True, slots=True)
class EncoderTokens:
    """Encoder tokens of the two images of a pair; the MLLM receives these tokens and no pixels.

    Raises:
        TokenError: values, lengths, grids and number of levels do not fit each other.
    """

    pair_id: str
    """Id of the pair."""
    values_NW: torch.Tensor
    """[N_a + N_b, (1 + L) * D] bfloat16 or float32: rows of image a, then of image b; columns of the main tokens, then
    of the L DeepStack levels."""
    lengths: tuple[int, ...]
    """Number of tokens of each image, (N_a, N_b)."""
    grids: tuple[Grid, ...]
    """Patch grid of each image."""
    num_deepstack: int
    """L, the number of DeepStack levels."""
    encoder_version: int
    """Number of optimizer steps that the encoder had taken."""

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
        """D, the width of the main tokens and of each DeepStack level."""
        return self.values_NW.shape[1] // (1 + self.num_deepstack)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one group; they are part of the task, so that a retry gives the same completions."""

    num_completions: int
    """G, the number of completions."""
    temperature: float
    """Sampling temperature; 0 is greedy decoding."""
    top_p: float
    """Probability mass of nucleus sampling, in (0, 1]."""
    max_tokens: int
    """Longest completion, tokens."""
    seed: int
    """Seed of the group; with it, an engine draws the same completions for the same tokens."""


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """A group that is to be generated and scored."""

    pair: ImagePair
    """The pair whose images are compared."""
    tokens: Any
    """Handle of the pair's ``EncoderTokens``: the record itself, or a reference into the object store."""
    sampling: Sampling
    """Sampling parameters of the group."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.pair.pair_id


@dataclass(frozen=True, slots=True)
class Completions:
    """G completions for one pair, as an engine returns them."""

    pair_id: str
    """Id of the pair."""
    token_ids: tuple[tuple[int, ...], ...]
    """G sequences of T_g token ids; the end-of-turn token is included when it was sampled."""
    texts: tuple[str, ...]
    """G decoded texts without special tokens. They are untrusted input."""
    log_probs: tuple[np.ndarray, ...]
    """G float32 arrays [T_g]: log-probability of each token under the model's own distribution, before temperature and
    top-p, nats."""
    finish_reasons: tuple[str, ...]
    """G reasons: ``stop`` (end of turn) or ``length`` (``max_tokens`` reached)."""
    sampling: Sampling
    """Sampling parameters that the completions were drawn with."""
    encoder_version: int
    """Version of the encoder tokens that the completions were generated from."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """Completions of a pair with verdicts, rewards, advantages and the tokens that describe each image."""

    pair: ImagePair
    """The pair whose images are compared."""
    completions: Completions
    """The completions of the group."""
    verdicts: tuple[bool | None, ...]
    """G parsed verdicts, True for "same class"; None where the text has no valid verdict."""
    rewards_G: np.ndarray
    """[G] float32, finite; 0 or 1 with the reward ``verdict``."""
    is_correct_G: np.ndarray
    """[G] bool, True where the reward calls the completion correct; only such completions have attention targets."""
    advantages_G: np.ndarray
    """[G] float32; all zero when the rewards do not vary."""
    describes_a: tuple[np.ndarray, ...]
    """G bool arrays [T_g], True for tokens that describe image a; all False where no description was found."""
    describes_b: tuple[np.ndarray, ...]
    """G bool arrays [T_g], True for tokens that describe image b; all False where no description was found."""
    replayed: tuple[np.ndarray, ...] = ()
    """G float32 arrays [T_g], ``LogProbMismatch.replayed`` of a group that was trained on; empty outside recordings."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.pair.pair_id

    @property
    def contributes(self) -> bool:
        """True when the rewards vary within the group, so that it has a GRPO gradient."""
        return bool(self.rewards_G.min() != self.rewards_G.max())

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all completions: the group's part of |T|, by which L_GRPO is divided."""
        return sum(len(ids) for ids in self.completions.token_ids)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Result of a pool for a group on which workers failed on every allowed attempt; the group is not trained on."""

    pair_id: str
    """Id of the pair."""
    reason: str
    """The last failure, one line."""
    attempts: int
    """Number of failed attempts."""


@dataclass(frozen=True, slots=True)
class ReplayTask:
    """A group whose loss is to be differentiated at its encoder tokens, with the denominator of the whole step."""

    group: ScoredGroup
    """The group to replay."""
    tokens: Any
    """Handle of the pair's ``EncoderTokens`` of the present encoder version, at which the gradient is taken."""
    num_tokens_total: int
    """|T|: generated tokens over all groups of the step's buffer."""
    want_attention: bool
    """True to compute attention targets too."""
    behaviour: Any = None
    """Handle of the older ``EncoderTokens`` that the group was generated from; None when they are ``tokens`` or are
    lost."""
    truncate_at: float | None = None
    """Largest importance weight of a token; None: the group is on-policy and every weight is exactly 1. Without
    ``behaviour`` the weight is computed from the engine's log-probabilities."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.group.pair.pair_id


@dataclass(frozen=True, slots=True)
class VerdictTask:
    """A pair whose verdict loss is to be differentiated at its encoder tokens; it needs no completions."""

    pair: ImagePair
    """The pair whose right verdict is to become likely."""
    tokens: Any
    """Handle of the pair's ``EncoderTokens`` of the present encoder version, at which the gradient is taken."""
    num_pairs_total: int
    """Pairs of the whole step, over which L_verdict is the mean."""

    @property
    def pair_id(self) -> str:
        """Id of the pair."""
        return self.pair.pair_id

    @property
    def behaviour(self) -> None:
        """Always None: nothing was sampled, so there are no older tokens."""
        return None


GradientTask = ReplayTask | VerdictTask
"""Task of a replay worker: the gradient of a group's, or of a pair's, part of the loss at its encoder tokens."""


@dataclass(frozen=True, slots=True)
class LogProbMismatch:
    """Differences between the log-probabilities of engine and replay on one group, and its importance weights."""

    log_prob_gap: float
    """Mean over tokens of |log p_engine - log p_replay| with the same encoder tokens, nats."""
    mismatch_kl: float
    """Estimate of KL(engine || replay) per token with the same encoder tokens, mean of e^d - 1 - d, never negative."""
    weight_quantiles: tuple[float, ...] = ()
    """Quantiles ``WEIGHT_QUANTILES`` of the importance weights before truncation; empty when all are exactly 1."""
    truncated_share: float = 0.0
    """Share of tokens whose importance weight was truncated, in [0, 1]."""
    replayed: tuple[np.ndarray, ...] = field(default=(), compare=False)
    """G float32 arrays [T_g]: log-probability of each token by replay with the encoder tokens that the engine had,
    comparable with ``Completions.log_probs``; empty when no model replayed the group."""


WEIGHT_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Quantiles of the importance weights that ``LogProbMismatch.weight_quantiles`` holds."""


@dataclass(frozen=True, slots=True)
class TokenGradients:
    """Gradient of L_GRPO (or L_verdict) at the encoder tokens of one pair, and attention targets of its two images."""

    pair_id: str
    """Id of the pair."""
    values_NW: torch.Tensor
    """Gradient, float32, with the shape of ``EncoderTokens.values_NW``."""
    attention_a_N: torch.Tensor | None
    """[N_a] float32, attention target of image a, mean over the correct completions; None when there is none."""
    attention_b_N: torch.Tensor | None
    """[N_b] float32, attention target of image b, mean over the correct completions; None when there is none."""
    negative_entropy: float
    """Mean over the same completions of sum(alpha log alpha), images a and b added: the constant part of L_KL."""
    num_attended: int
    """Correct completions that describe both images: the group's weight in the mean of L_KL over the buffer."""
    loss: float
    """The group's part of L_GRPO, divided by |T|; or the pair's part of L_verdict, divided by the step's pairs."""
    num_tokens: int
    """Generated tokens of the group; or tokens of both verdicts."""
    mismatch: LogProbMismatch
    """Differences between engine and replay; zeros where no engine generated anything."""
    encoder_version: int
    """Version of the encoder tokens at which the gradient was taken."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Metrics of one optimizer step."""

    step: int
    """Optimizer steps done, this one included."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Values by name, ``stage/quantity_unit``."""
