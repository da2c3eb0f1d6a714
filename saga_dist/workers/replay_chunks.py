"""What replay works with: some completions of a group at a time, what sampling thought of them, and what adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from saga_dist.models.families.base import PromptLayout
from saga_dist.objectives.attention import attention_statistics
from saga_dist.types import WEIGHT_QUANTILES, EncoderTokens, LogProbMismatch, ReplayTask, ScoredGroup, TokenGradients

MAX_PADDING = 64
"""Columns that a completion is padded by at most; about what one more pass over the weights costs in tokens."""
PACKED_TOKENS = 1024
"""Of a packed chunk: larger matrices are not faster any more, and their activations leave the processor's cache."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some distinct completions of a group, on top of the prompt's last token.

    Completions of the same tokens are read once: U tokens are predicted, R >= U generated tokens get their numbers
    from them. In a row of R, the copies of a token are neighbours.
    """

    copies: tuple[tuple[int, ...], ...]
    """For each distinct completion, which ones of the group it is."""
    sequences: tuple[torch.Tensor, ...]
    """int64: the prompt's last token and the completion, without its own last token where nobody asks what that one
    looks at: it predicts nothing."""
    lengths: tuple[int, ...]
    """Of the distinct completions; they add up to U."""
    targets_U: torch.Tensor
    """int64, the tokens to predict."""

    @classmethod
    def of(
        cls, group: ScoredGroup, copies: Sequence[Sequence[int]], prompt: PromptLayout, device: torch.device
    ) -> Chunk:
        """Returns the distinct completions that ``copies`` names."""
        sequences, targets = [], []
        for indices in copies:
            ids = torch.tensor(group.completions.token_ids[indices[0]], device=device)
            to_the_end = any(group.describes_a[index][-1] or group.describes_b[index][-1] for index in indices)
            sequences.append(torch.cat([prompt.token_ids_S[-1:], ids if to_the_end else ids[:-1]]))
            targets.append(ids)
        lengths = tuple(map(len, targets))
        return cls(tuple(map(tuple, copies)), tuple(sequences), lengths, torch.cat(targets))

    def predictors(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Returns the hidden state [U, D] that predicts each token: the one that stands before it."""
        rows = hidden_SD.split([len(sequence) for sequence in self.sequences])
        if len(hidden_SD) == len(self.targets_U):
            return hidden_SD
        return torch.cat([row_TD[:length] for row_TD, length in zip(rows, self.lengths, strict=True)])

    def counts(self) -> torch.Tensor:
        """Returns how many generated tokens get their numbers from each of the U, int64."""
        per_row = torch.tensor([len(indices) for indices in self.copies], device=self.targets_U.device)
        return per_row.repeat_interleave(torch.tensor(self.lengths, device=self.targets_U.device))

    def in_order(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns what stands in [T_g] tensors of all completions of the group as [R]."""
        rows = [torch.stack([values[index] for index in indices], dim=1).flatten() for indices in self.copies]
        return torch.cat(rows)

    def by_completion(self, values_R: torch.Tensor) -> dict[int, np.ndarray]:
        """Returns the numbers [T_g] of each completion by its index in the group: the way back from ``in_order``."""
        rows = values_R.split(
            [len(indices) * length for indices, length in zip(self.copies, self.lengths, strict=True)]
        )
        return {
            index: row.reshape(length, len(indices))[:, copy].numpy()
            for indices, length, row in zip(self.copies, self.lengths, rows, strict=True)
            for copy, index in enumerate(indices)
        }

    def per_token(self, values_G: torch.Tensor) -> torch.Tensor:
        """Returns a number per completion of the whole group as [R], one for each generated token."""
        rows = zip(self.copies, self.lengths, strict=True)
        return torch.cat([values_G[list(indices)].repeat(length) for indices, length in rows]).to(self.targets_U.device)


@dataclass(frozen=True, slots=True)
class BehaviourLogProbs:
    """Log-probabilities of a chunk's R generated tokens where they were sampled."""

    engine_R: torch.Tensor
    """As the engine said."""
    replay_R: torch.Tensor | None = None
    """As computed here, where the encoder has moved since; None where it has not, or the tokens are lost."""
    tempered_R: torch.Tensor | None = None
    """Likewise at the sampling temperature."""


@dataclass(slots=True)
class ReplayTotals:
    """What the chunks of one group add up to."""

    loss: float = 0.0
    differences: list[torch.Tensor] = field(default_factory=list)
    """Replay minus engine log-probabilities with the same encoder tokens, [R] of each chunk."""
    replayed: dict[int, np.ndarray] = field(default_factory=dict)
    """Index of a completion to its replay log-probabilities, float32 [T]."""
    weights: list[torch.Tensor] = field(default_factory=list)
    """Importance weights before truncation, [R] of each piece."""
    targets: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))
    """For image a and image b, the attention target [N] of every completion that has one for both."""

    def compare(self, chunk: Chunk, engine_R: torch.Tensor, replay_R: torch.Tensor) -> None:
        """Notes what engine and replay say about the same tokens."""
        replay_R = replay_R.cpu()
        self.differences.append(replay_R - engine_R)
        self.replayed.update(chunk.by_completion(replay_R))

    def mismatch(self, truncate_at: float | None) -> LogProbMismatch:
        """Returns how replay and sampler compare."""
        differences_R = torch.cat(self.differences).double()
        mismatch = LogProbMismatch(
            log_prob_gap=differences_R.abs().mean().item(),
            mismatch_kl=(differences_R.exp() - 1 - differences_R).mean().item(),
            replayed=tuple(self.replayed[index] for index in range(len(self.replayed))),
        )
        if truncate_at is None:
            return mismatch
        weights_R = torch.cat(self.weights).double().cpu()
        quantiles_Q = weights_R.quantile(torch.tensor(WEIGHT_QUANTILES, dtype=torch.float64))
        return replace(
            mismatch,
            weight_quantiles=tuple(quantiles_Q.tolist()),
            truncated_share=(weights_R > truncate_at).double().mean().item(),
        )

    def collect(self, task: ReplayTask, values_NW: torch.Tensor, tokens: EncoderTokens) -> TokenGradients:
        """Returns the record, on the device the tokens came from."""
        device = tokens.values_NW.device
        num_attended = len(self.targets[0])
        means: list[torch.Tensor | None] = [None, None]
        negative_entropy = 0.0
        if num_attended:
            statistics = [attention_statistics(torch.stack(targets)) for targets in self.targets]
            means = [image.mean_target_N.to(device) for image in statistics]
            negative_entropy = sum(image.mean_negative_entropy.item() for image in statistics)
        assert values_NW.grad is not None
        return TokenGradients(
            pair_id=tokens.pair_id,
            values_NW=values_NW.grad.to(device),
            attention_a_N=means[0],
            attention_b_N=means[1],
            negative_entropy=negative_entropy,
            num_attended=num_attended,
            loss=self.loss,
            num_tokens=task.group.num_tokens,
            mismatch=self.mismatch(task.truncate_at),
            encoder_version=tokens.encoder_version,
        )


def distinct_completions(token_ids: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Returns the indices of equal completions together, in the order of their first ones."""
    copies: dict[tuple[int, ...], list[int]] = {}
    for index, ids in enumerate(token_ids):
        copies.setdefault(ids, []).append(index)
    return list(copies.values())


def padded_chunks(lengths: Sequence[int], largest: int) -> list[list[int]]:
    """Returns completions of similar length together, at most ``largest``: padding costs what tokens cost."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        if not chunks or len(chunks[-1]) == largest or lengths[chunks[-1][0]] - lengths[index] > MAX_PADDING:
            chunks.append([])
        chunks[-1].append(index)
    return [sorted(chunk) for chunk in chunks]


def packed_chunks(lengths: Sequence[int], largest: int) -> list[list[int]]:
    """Returns completions in their order, at most ``largest`` and ``PACKED_TOKENS`` together; a longer one alone."""
    chunks: list[list[int]] = []
    num_tokens = 0
    for index, length in enumerate(lengths):
        if not chunks or len(chunks[-1]) == largest or num_tokens + length > PACKED_TOKENS:
            chunks.append([])
            num_tokens = 0
        chunks[-1].append(index)
        num_tokens += length
    return chunks
