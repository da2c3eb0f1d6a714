"""Replay: the gradient of L_GRPO at the encoder tokens, and where the MLLM looked while it described the images.

The language model is frozen, so dL/d(tokens) is all the encoder needs from it. One group:

    head ── prompt ── K, V ──detach──► leaves ──► completions, some at a time ──► log-probs ──► L, backward to leaves
    (constant)  │                                         └► attention rows of one layer (no gradient)
                └◄── one backward through the prompt, from what the leaves collected

So the prompt runs once for all G completions, activations exist for at most ``completions_per_chunk`` of them (of
similar length, so that little is padding), and logits for ``logits_chunk`` positions. What stands before the first
image is a constant of the run and is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.errors import ModelError
from saga_dist.models.families.base import AttentionProbe, Family, FrozenBackbone, KeyValues, PromptLayout
from saga_dist.objectives.attention import attention_statistics, attention_targets, renormalised_attention
from saga_dist.objectives.grpo import grpo_loss
from saga_dist.types import EncoderTokens, Grid, ReplayTask, ScoredGroup, TokenGradients
from saga_dist.workers.engines.validation import validate_tokens

MAX_PADDING = 64
"""Columns that a completion is padded by at most; about what one more pass over the weights costs in tokens."""


class ReplayWorker:
    """Teacher-forced forward and backward through the frozen language model; implements ``protocols.ReplayWorker``.

    It keeps nothing of a task: the same task gives the same gradients on any worker.

    Args:
        backbone: the frozen language model.
        family: of the same checkpoint; its tokenizer reads the prompt.
        prompt_text: the whole prompt as the engine gets it, with one placeholder per image.
        kl_layer: decoder layer of the attention targets, counted from 0.
        completions_per_chunk: completions whose activations exist at once.
        logits_chunk: completion positions whose logits exist at once.

    Raises:
        ModelError: ``kl_layer`` is not a layer of this model.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        *,
        family: Family,
        prompt_text: str,
        kl_layer: int,
        completions_per_chunk: int = 8,
        logits_chunk: int = 1024,
    ) -> None:
        if not 0 <= kl_layer < backbone.num_layers:
            raise ModelError(
                f"objective.kl_layer = {kl_layer}",
                where=family.files.name,
                expected=f"a layer below {backbone.num_layers}",
                fix="set objective.kl_layer to about 3/4 of the depth",
            )
        self._backbone = backbone
        self._prompt_ids: list[int] = family.load_tokenizer().encode(prompt_text, add_special_tokens=False)
        self._kl_layer = kl_layer
        self._completions_per_chunk = completions_per_chunk
        self._logits_chunk = logits_chunk
        self._layouts: dict[tuple[Grid, ...], PromptLayout] = {}
        self._head: KeyValues | None = None

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen weights."""
        return self._backbone.digest()

    def replay(self, task: ReplayTask, tokens: EncoderTokens) -> TokenGradients:
        """Returns dL_GRPO/d(tokens) and the attention targets of one group.

        Args:
            task: the group, and the denominator of the step's buffer.
            tokens: what the group was generated from; any floating dtype, any device.

        Raises:
            TokenError: the tokens do not fit the model.
        """
        backbone, layout = self._backbone, self._backbone.layout
        validate_tokens(
            tokens,
            width=layout.width,
            num_deepstack=layout.num_deepstack,
            merge_size=layout.merge_size,
            dtype=tokens.values_NW.dtype,
        )
        prompt = self._lay_out(tokens.grids)
        values_NW = tokens.values_NW.detach().to(backbone.device, torch.float32).requires_grad_()
        # The last prompt token is read together with the completions: its hidden state predicts their first token.
        num_prefix = len(prompt.token_ids_S) - 1
        start = prompt.images[0].start
        prefix = backbone.read_prompt(prompt, values_NW, slice(start, num_prefix), self._constant_head(prompt))
        leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in prefix)

        results = _Results()
        lengths = [len(ids) for ids in task.group.completions.token_ids]
        for chunk in _chunks(lengths, self._completions_per_chunk):
            self._replay_chunk(task, chunk, leaves, prompt, results)
        _back_propagate(prefix, leaves)
        return results.collect(task.group, values_NW, tokens)

    def _replay_chunk(
        self, task: ReplayTask, chunk: Sequence[int], leaves: KeyValues, prompt: PromptLayout, results: _Results
    ) -> None:
        group, device = task.group, self._backbone.device
        sequences = [group.completions.token_ids[index] for index in chunk]
        longest = max(map(len, sequences))
        inputs_GT = torch.zeros(len(chunk), longest + 1, dtype=torch.int64, device=device)
        inputs_GT[:, 0] = prompt.token_ids_S[-1]
        for row, sequence in enumerate(sequences):
            inputs_GT[row, 1 : len(sequence) + 1] = torch.tensor(sequence, dtype=torch.int64)
        attended = [row for row, index in enumerate(chunk) if task.want_attention and _has_targets(group, index)]
        run = self._backbone.read_completions(
            leaves, inputs_GT, prompt.next_position - 1, probe_layer=self._kl_layer if attended else None
        )
        # Column t of the hidden states predicts token t; the last token's column predicts nothing that was sampled.
        lengths_G = torch.tensor([len(sequence) for sequence in sequences], device=device)
        mask_GT = torch.arange(longest, device=device) < lengths_G[:, None]
        advantages_G = torch.as_tensor(group.advantages_G, dtype=torch.float32, device=device)[list(chunk)]
        log_probs_R = self._back_propagate_loss(
            run.hidden_GTD[:, :-1][mask_GT],
            inputs_GT[:, 1:][mask_GT],
            advantages_G[:, None].expand_as(mask_GT)[mask_GT],
            task.num_tokens_total,
            results,
        )
        engine_R = np.concatenate([group.completions.log_probs[index] for index in chunk])
        results.gap += (log_probs_R.cpu() - torch.from_numpy(engine_R)).abs().sum().item()
        for row in attended:
            assert run.probe is not None
            self._read_attention(run.probe, row, group, chunk[row], prompt, results)

    def _back_propagate_loss(
        self,
        hidden_RD: torch.Tensor,
        targets_R: torch.Tensor,
        advantages_R: torch.Tensor,
        num_tokens_total: int,
        results: _Results,
    ) -> torch.Tensor:
        """Back-propagates L_GRPO of R generated tokens to the cache leaves; returns their log-probabilities [R]."""
        size = self._logits_chunk
        gradients, log_probs = [], []
        for leaf_RD, targets, advantages in zip(
            hidden_RD.detach().split(size), targets_R.split(size), advantages_R.split(size), strict=True
        ):
            logits_RV = self._backbone.logits(leaf_RD.requires_grad_())
            log_probs_R1 = -F.cross_entropy(logits_RV, targets, reduction="none")[:, None]
            # The loss is a sum over tokens, so each token stands as a completion of its own and chunks add up.
            every_R1 = torch.ones_like(log_probs_R1, dtype=torch.bool)
            loss = grpo_loss(log_probs_R1, every_R1, advantages, num_tokens_total)
            gradients += torch.autograd.grad(loss, leaf_RD)
            results.loss += loss.item()
            log_probs.append(log_probs_R1.detach()[:, 0])
        hidden_RD.backward(torch.cat(gradients))
        return torch.cat(log_probs)

    def _read_attention(
        self, probe: AttentionProbe, row: int, group: ScoredGroup, index: int, prompt: PromptLayout, results: _Results
    ) -> None:
        masks = (group.describes_a[index], group.describes_b[index])
        for image, mask_T, targets in zip(prompt.images, masks, results.targets, strict=True):
            # A token looks from the position where it is read, one column after the one that predicts it.
            columns_R = torch.from_numpy(np.flatnonzero(mask_T) + 1).to(self._backbone.device)
            rows_RN = renormalised_attention(probe.rows(row, columns_R)[:, image])
            targets.append(attention_targets(rows_RN))

    def _lay_out(self, grids: tuple[Grid, ...]) -> PromptLayout:
        if grids not in self._layouts:
            self._layouts[grids] = self._backbone.lay_out(self._prompt_ids, grids)
        return self._layouts[grids]

    @torch.no_grad()
    def _constant_head(self, prompt: PromptLayout) -> KeyValues | None:
        """Keys and values of the text before the first image; of text-first prompts that is nearly all of the text."""
        start = prompt.images[0].start
        if self._head is None and start:
            self._head = self._backbone.read_prompt(prompt, None, slice(0, start))
        return self._head


@dataclass(slots=True)
class _Results:
    """What the chunks of one group add up to."""

    loss: float = 0.0
    gap: float = 0.0
    """Sum of absolute differences between engine and replay log-probabilities."""
    targets: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))
    """For image a and image b, the attention target [N] of every completion that has one for both."""

    def collect(self, group: ScoredGroup, values_NW: torch.Tensor, tokens: EncoderTokens) -> TokenGradients:
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
            num_tokens=group.num_tokens,
            log_prob_gap=self.gap / max(1, group.num_tokens),
            encoder_version=tokens.encoder_version,
        )


def _chunks(lengths: Sequence[int], largest: int) -> list[list[int]]:
    """Completions of similar length together, at most ``largest``: padding costs what tokens cost."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        if not chunks or len(chunks[-1]) == largest or lengths[chunks[-1][0]] - lengths[index] > MAX_PADDING:
            chunks.append([])
        chunks[-1].append(index)
    return [sorted(chunk) for chunk in chunks]


def _has_targets(group: ScoredGroup, index: int) -> bool:
    """True for a reward-1 completion that describes both images: no other has attention targets."""
    return bool(group.rewards_G[index] == 1 and group.describes_a[index].any() and group.describes_b[index].any())


def _back_propagate(prefix: KeyValues, leaves: KeyValues) -> None:
    """One backward through the prompt, from what all chunks left at its keys and values."""
    outputs = [tensor for layer in prefix for tensor in layer]
    gradients = [leaf.grad for layer in leaves for leaf in layer]
    torch.autograd.backward(outputs, gradients)
