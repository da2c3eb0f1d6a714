"""Data of replay: chunks of a group's completions, their log-probabilities at sampling, and the group's totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from saga_dist.models.families.base import PromptLayout
from saga_dist.objectives.attention import attention_statistics
from saga_dist.types import WEIGHT_QUANTILES, EncoderTokens, LogProbMismatch, ReplayTask, ScoredGroup, TokenGradients

MAX_PADDING = 64
"""Largest number of padding tokens per completion; they cost about as much as one more pass over the weights."""
CPU_CHUNK_TOKENS = 1024
"""Largest number of tokens in a packed chunk on a CPU: larger matrices are no faster there, and their activations
exceed its cache."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some distinct completions of a group, to be run after the prompt's last token.

    Equal completions run once: the U tokens of the distinct completions are predicted, and the R >= U tokens of all
    their copies get the same values. In tensors of size R, the copies of a token are adjacent.
    """

    copies: tuple[tuple[int, ...], ...]
    """Indices in the group of each distinct completion's copies."""
    sequences: tuple[torch.Tensor, ...]
    """int64 input tokens of each distinct completion: the prompt's last token, then the completion. Its last token is
    left out, because it predicts nothing, unless its attention is needed."""
    lengths: tuple[int, ...]
    """Number of tokens of each distinct completion; the sum is U."""
    targets_U: torch.Tensor
    """int64 [U], tokens to predict."""

    @classmethod
    def of(
        cls, group: ScoredGroup, copies: Sequence[Sequence[int]], prompt: PromptLayout, device: torch.device
    ) -> Chunk:
        """Returns a chunk of some distinct completions.

        Args:
            group: the group.
            copies: indices in the group of each distinct completion's copies.
            prompt: the prompt, whose last token starts every sequence.
            device: device of the chunk's tensors.
        """
        sequences, targets = [], []
        for indices in copies:
            ids = torch.tensor(group.completions.token_ids[indices[0]], device=device)
            needs_last = any(group.describes_a[index][-1] or group.describes_b[index][-1] for index in indices)
            sequences.append(torch.cat([prompt.token_ids_S[-1:], ids if needs_last else ids[:-1]]))
            targets.append(ids)
        lengths = tuple(map(len, targets))
        return cls(tuple(map(tuple, copies)), tuple(sequences), lengths, torch.cat(targets))

    def predictors(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states [U, D] that predict the targets, each from the position before its target.

        Args:
            hidden_SD: [S, D], hidden states of all sequences, concatenated.
        """
        rows = hidden_SD.split([len(sequence) for sequence in self.sequences])
        if len(hidden_SD) == len(self.targets_U):
            return hidden_SD
        return torch.cat([row_TD[:length] for row_TD, length in zip(rows, self.lengths, strict=True)])

    def counts(self) -> torch.Tensor:
        """Returns int64 [U], the number of generated tokens (copies) behind each predicted token."""
        per_row = torch.tensor([len(indices) for indices in self.copies], device=self.targets_U.device)
        return per_row.repeat_interleave(torch.tensor(self.lengths, device=self.targets_U.device))

    def in_order(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the values of this chunk's completions as one tensor [R].

        Args:
            values: a tensor [T_g] for every completion of the group.
        """
        rows = [torch.stack([values[index] for index in indices], dim=1).flatten() for indices in self.copies]
        return torch.cat(rows)

    def by_completion(self, values_R: torch.Tensor) -> dict[int, np.ndarray]:
        """Returns the values [T_g] of each completion, by its index in the group; the inverse of ``in_order``."""
        rows = values_R.split(
            [len(indices) * length for indices, length in zip(self.copies, self.lengths, strict=True)]
        )
        return {
            index: row.reshape(length, len(indices))[:, copy].numpy()
            for indices, length, row in zip(self.copies, self.lengths, rows, strict=True)
            for copy, index in enumerate(indices)
        }

    def per_token(self, values_G: torch.Tensor) -> torch.Tensor:
        """Returns a value per completion, repeated for each of its tokens, as [R].

        Args:
            values_G: [G], one value per completion of the whole group.
        """
        rows = zip(self.copies, self.lengths, strict=True)
        return torch.cat([values_G[list(indices)].repeat(length) for indices, length in rows]).to(self.targets_U.device)


@dataclass(frozen=True, slots=True)
class BehaviourLogProbs:
    """Log-probabilities of a chunk's R generated tokens with the encoder tokens that they were sampled from."""

    engine_R: torch.Tensor
    """Values of the engine, at temperature 1."""
    replay_R: torch.Tensor | None = None
    """Values computed by replay, at temperature 1; None when the group is on-policy, or its older tokens are lost."""
    tempered_R: torch.Tensor | None = None
    """Values computed by replay at the sampling temperature; None in the same cases."""


@dataclass(slots=True)
class ReplayTotals:
    """Results of one group, accumulated over its chunks."""

    loss: float = 0.0
    """The group's part of L_GRPO, denominator included."""
    differences: list[torch.Tensor] = field(default_factory=list)
    """Replay minus engine log-probabilities with the same encoder tokens, [R] for each chunk."""
    replayed: dict[int, np.ndarray] = field(default_factory=dict)
    """Replay log-probabilities of each completion, float32 [T_g], by its index in the group."""
    weights: list[torch.Tensor] = field(default_factory=list)
    """Importance weights before truncation, one tensor per ``logits_chunk`` positions."""
    targets: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))
    """Attention targets [N] for image a and for image b, of every correct completion that describes both."""

    def compare(self, chunk: Chunk, engine_R: torch.Tensor, replay_R: torch.Tensor) -> None:
        """Adds the log-probabilities of engine and replay, [R] each, for the tokens of a chunk."""
        replay_R = replay_R.cpu()
        self.differences.append(replay_R - engine_R)
        self.replayed.update(chunk.by_completion(replay_R))

    def mismatch(self, truncate_at: float | None) -> LogProbMismatch:
        """Returns the differences between engine and replay, and statistics of the importance weights.

        Args:
            truncate_at: largest importance weight; None for an on-policy group, which has no weights.
        """
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
        """Returns the token gradients of the group, on the device of ``tokens``.

        Args:
            task: the replayed group.
            values_NW: leaf whose ``grad`` is dL_GRPO/d(tokens).
            tokens: encoder tokens of the pair.
        """
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
    """Returns the indices of each distinct completion's copies, in the order of first occurrence."""
    copies: dict[tuple[int, ...], list[int]] = {}
    for index, ids in enumerate(token_ids):
        copies.setdefault(ids, []).append(index)
    return list(copies.values())


def padded_chunks(lengths: Sequence[int], largest: int, most_tokens: int) -> list[list[int]]:
    """Returns chunks of completions of similar length, because padding costs as much as tokens do.

    Args:
        lengths: tokens of each completion.
        largest: largest number of completions in a chunk.
        most_tokens: largest number of tokens in a chunk, padding included; a longer completion is alone.

    Returns:
        Indices of each chunk's completions, ascending.
    """
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        longest = lengths[chunks[-1][0]] if chunks else 0
        if (
            not chunks
            or len(chunks[-1]) == largest
            or (len(chunks[-1]) + 1) * longest > most_tokens
            or longest - lengths[index] > MAX_PADDING
        ):
            chunks.append([])
        chunks[-1].append(index)
    return [sorted(chunk) for chunk in chunks]


def packed_chunks(lengths: Sequence[int], largest: int, most_tokens: int) -> list[list[int]]:
    """Returns chunks of consecutive completions.

    Args:
        lengths: tokens of each completion.
        largest: largest number of completions in a chunk.
        most_tokens: largest number of tokens in a chunk; a longer completion is alone.

    Returns:
        Indices of each chunk's completions, ascending.
    """
    chunks: list[list[int]] = []
    num_tokens = 0
    for index, length in enumerate(lengths):
        if not chunks or len(chunks[-1]) == largest or num_tokens + length > most_tokens:
            chunks.append([])
            num_tokens = 0
        chunks[-1].append(index)
        num_tokens += length
    return chunks
