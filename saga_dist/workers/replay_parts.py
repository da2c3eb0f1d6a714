"""What replay works with: some completions of a group at a time, what sampling thought of them, and what adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from saga_dist.models.families.base import PromptLayout
from saga_dist.objectives.attention import attention_statistics
from saga_dist.types import WEIGHT_QUANTILES, Agreement, EncoderTokens, ReplayTask, ScoredGroup, TokenGradients

MAX_PADDING = 64
"""Columns that a completion is padded by at most; about what one more pass over the weights costs in tokens."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some completions of a group, padded to one length, on top of the prompt's last token."""

    indices: Sequence[int]
    prompt: PromptLayout
    inputs_GT: torch.Tensor
    """int64 [G, 1 + T]."""
    mask_GT: torch.Tensor
    """bool [G, T], True at generated tokens; R of them in row order."""

    @classmethod
    def of(cls, group: ScoredGroup, indices: Sequence[int], prompt: PromptLayout, device: torch.device) -> Chunk:
        """Returns the completions ``indices`` of a group as one padded batch."""
        sequences = [group.completions.token_ids[index] for index in indices]
        longest = max(map(len, sequences))
        inputs_GT = torch.zeros(len(indices), longest + 1, dtype=torch.int64, device=device)
        inputs_GT[:, 0] = prompt.token_ids_S[-1]
        for row, sequence in enumerate(sequences):
            inputs_GT[row, 1 : len(sequence) + 1] = torch.tensor(sequence, dtype=torch.int64)
        lengths_G = torch.tensor([len(sequence) for sequence in sequences], device=device)
        return cls(indices, prompt, inputs_GT, torch.arange(longest, device=device) < lengths_G[:, None])

    def targets(self) -> torch.Tensor:
        """Returns the generated tokens, int64 [R]."""
        return self.inputs_GT[:, 1:][self.mask_GT]

    def predictors(self, hidden_GTD: torch.Tensor) -> torch.Tensor:
        """Returns the hidden state [R, D] that predicts each generated token: column t predicts token t, and the last
        token's column predicts nothing that was sampled."""
        return hidden_GTD[:, :-1][self.mask_GT]

    def per_token(self, values_G: torch.Tensor) -> torch.Tensor:
        """Returns a number per completion of the whole group as [R], one for each generated token."""
        own_G = values_G.to(self.mask_GT.device)[list(self.indices)]
        return own_G[:, None].expand_as(self.mask_GT)[self.mask_GT]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Log-probabilities of a chunk's R generated tokens where they were sampled."""

    engine_R: torch.Tensor
    """As the engine said."""
    replay_R: torch.Tensor | None = None
    """As computed here, where the encoder has moved since; None where it has not, or the tokens are lost."""
    tempered_R: torch.Tensor | None = None
    """Likewise at the sampling temperature."""


@dataclass(slots=True)
class Results:
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
        rows = replay_R.split(chunk.mask_GT.sum(1).tolist())
        self.replayed.update((index, row_T.numpy()) for index, row_T in zip(chunk.indices, rows, strict=True))

    def agreement(self, truncate_at: float | None) -> Agreement:
        """Returns how replay and sampler compare."""
        differences_R = torch.cat(self.differences).double()
        agreement = Agreement(
            log_prob_gap=differences_R.abs().mean().item(),
            mismatch_kl=(differences_R.exp() - 1 - differences_R).mean().item(),
            replayed=tuple(self.replayed[index] for index in range(len(self.replayed))),
        )
        if truncate_at is None:
            return agreement
        weights_R = torch.cat(self.weights).double().cpu()
        quantiles_Q = weights_R.quantile(torch.tensor(WEIGHT_QUANTILES, dtype=torch.float64))
        return replace(
            agreement,
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
            agreement=self.agreement(task.truncate_at),
            encoder_version=tokens.encoder_version,
        )


def chunk_indices(lengths: Sequence[int], largest: int) -> list[list[int]]:
    """Returns completions of similar length together, at most ``largest``: padding costs what tokens cost."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        if not chunks or len(chunks[-1]) == largest or lengths[chunks[-1][0]] - lengths[index] > MAX_PADDING:
            chunks.append([])
        chunks[-1].append(index)
    return [sorted(chunk) for chunk in chunks]
