"""Replay: the gradient of L_GRPO at the encoder tokens, and where the MLLM looked while it described the images.

The language model is frozen, so dL/d(tokens) is all the encoder needs from it. One group:

    head ── prompt ── K, V ──detach──► leaves ──► completions, some at a time ──► log-probs ──► L, backward to leaves
    (constant)  │                                         └► attention rows of one layer (no gradient)
                └◄── one backward through the prompt, from what the leaves collected

So the prompt runs once for all G completions, equal completions run once with their advantages added up, activations
exist for at most ``completions_per_chunk`` of them, and logits for ``logits_chunk`` positions. What stands before the
first image is a constant of the run and is read once.

Where rollouts may be older than the encoder (``rollout.max_staleness`` > 0, an extension of the paper), the same
completions are also read on the tokens that they were sampled from, without gradient. Both numbers then come from one
program and from one distribution, the model at the sampling temperature, so that their ratio, the importance weight,
says how the encoder moved and nothing else; what the engine computes differently is measured apart
(``LogProbMismatch``). The cut at top-p is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.errors import ModelError
from saga_dist.models.families.base import AttentionProbe, Family, FrozenBackbone, PromptLayout
from saga_dist.models.families.key_values import KeyValues
from saga_dist.objectives.attention import attention_targets, renormalised_attention
from saga_dist.objectives.grpo import grpo_loss, importance_weights
from saga_dist.types import EncoderTokens, Grid, ReplayTask, ScoredGroup, TokenGradients
from saga_dist.workers.engines.validation import validate_tokens
from saga_dist.workers.replay_chunks import (
    BehaviourLogProbs,
    Chunk,
    ReplayTotals,
    distinct_completions,
    packed_chunks,
    padded_chunks,
)


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

    def replay(self, task: ReplayTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None) -> TokenGradients:
        """Returns dL_GRPO/d(tokens) and the attention targets of one group.

        Args:
            task: the group, the denominator of the step's buffer, and whether tokens carry importance weights.
            tokens: where the gradient is taken; any floating dtype, any device.
            behaviour: what the group was sampled from, where that is something else.

        Raises:
            TokenError: the tokens do not fit the model.
        """
        prompt, values_NW = self._read_tokens(tokens)
        values_NW.requires_grad_()
        prefix = self._read_prefix(prompt, values_NW)
        leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in prefix)

        chunks = self._chunks(task.group, prompt)
        sampled = self._sampled_log_probs(task.group, chunks, behaviour)
        results = ReplayTotals()
        for chunk, sampled_chunk in zip(chunks, sampled, strict=True):
            self._replay_chunk(task, chunk, prompt, sampled_chunk, leaves, results)
        _back_propagate(prefix, leaves)
        return results.collect(task, values_NW, tokens)

    def _read_tokens(self, tokens: EncoderTokens) -> tuple[PromptLayout, torch.Tensor]:
        layout = self._backbone.layout
        validate_tokens(
            tokens,
            width=layout.width,
            num_deepstack=layout.num_deepstack,
            merge_size=layout.merge_size,
            dtype=tokens.values_NW.dtype,
        )
        return self._lay_out(tokens.grids), tokens.values_NW.detach().to(self._backbone.device, torch.float32)

    def _read_prefix(self, prompt: PromptLayout, values_NW: torch.Tensor) -> KeyValues:
        """Keys and values of the prompt without its last token, which is read together with the completions: its
        hidden state predicts their first token."""
        columns = slice(prompt.images[0].start, len(prompt.token_ids_S) - 1)
        return self._backbone.prefill(prompt, values_NW, columns, self._constant_head(prompt))

    def _chunks(self, group: ScoredGroup, prompt: PromptLayout) -> list[Chunk]:
        token_ids = group.completions.token_ids
        copies = distinct_completions(token_ids)
        divide = packed_chunks if self._backbone.supports_packing else padded_chunks
        parts = divide([len(token_ids[indices[0]]) for indices in copies], self._completions_per_chunk)
        return [Chunk.of(group, [copies[row] for row in part], prompt, self._backbone.device) for part in parts]

    @torch.no_grad()
    def _sampled_log_probs(
        self, group: ScoredGroup, chunks: Sequence[Chunk], behaviour: EncoderTokens | None
    ) -> list[BehaviourLogProbs]:
        """For each chunk, what its tokens were worth to the encoder that they were sampled with."""
        log_probs = [torch.tensor(log_probs_T) for log_probs_T in group.completions.log_probs]
        engine = [chunk.in_order(log_probs) for chunk in chunks]
        if behaviour is None:
            return [BehaviourLogProbs(engine_R) for engine_R in engine]
        prompt, values_NW = self._read_tokens(behaviour)
        prefix = self._read_prefix(prompt, values_NW)
        sampled = []
        for chunk, engine_R in zip(chunks, engine, strict=True):
            hidden_SD = self._backbone.forward_packed(prefix, chunk.sequences, prompt.next_position - 1).hidden_RD
            pieces = zip(
                chunk.predictors(hidden_SD).split(self._logits_chunk),
                chunk.targets_U.split(self._logits_chunk),
                strict=True,
            )
            plain, tempered = [], []
            for hidden_UD, targets_U in pieces:
                logits_UV = self._backbone.logits(hidden_UD)
                plain.append(_log_probs(logits_UV, targets_U))
                tempered.append(_log_probs(logits_UV / group.completions.sampling.temperature, targets_U))
            plain_R, tempered_R = (torch.cat(each).repeat_interleave(chunk.counts()) for each in (plain, tempered))
            sampled.append(BehaviourLogProbs(engine_R, plain_R, tempered_R))
        return sampled

    def _replay_chunk(
        self,
        task: ReplayTask,
        chunk: Chunk,
        prompt: PromptLayout,
        sampled: BehaviourLogProbs,
        leaves: KeyValues,
        results: ReplayTotals,
    ) -> None:
        attended = [
            (row, index)
            for row, indices in enumerate(chunk.copies)
            for index in indices
            if task.want_attention and _has_targets(task.group, index)
        ]
        run = self._backbone.forward_packed(
            leaves, chunk.sequences, prompt.next_position - 1, probe_layer=self._kl_layer if attended else None
        )
        log_probs_R = self._back_propagate_loss(task, chunk, chunk.predictors(run.hidden_RD), sampled, results)
        results.compare(chunk, sampled.engine_R, log_probs_R if sampled.replay_R is None else sampled.replay_R)
        for row, index in attended:
            assert run.probe is not None
            self._read_attention(run.probe, row, task.group, index, prompt, results)

    def _back_propagate_loss(
        self, task: ReplayTask, chunk: Chunk, hidden_UD: torch.Tensor, sampled: BehaviourLogProbs, results: ReplayTotals
    ) -> torch.Tensor:
        """Back-propagates L_GRPO of R generated tokens to the cache leaves; returns their log-probabilities [R]."""
        size, temperature = self._logits_chunk, task.group.completions.sampling.temperature
        advantages_R, counts = chunk.per_token(torch.tensor(task.group.advantages_G)), chunk.counts().split(size)
        if sampled.tempered_R is None:  # the engine knows the untempered model only
            reference_R, temperature = sampled.engine_R.to(hidden_UD.device), 1.0
        else:
            reference_R = sampled.tempered_R
        sizes = [int(counts_U.sum()) for counts_U in counts]
        gradients, log_probs = [], []
        for leaf_UD, targets_U, counts_U, advantages, reference in zip(
            hidden_UD.detach().split(size),
            chunk.targets_U.split(size),
            counts,
            advantages_R.split(sizes),
            reference_R.split(sizes),
            strict=True,
        ):
            logits_UV = self._backbone.logits(leaf_UD.requires_grad_())
            log_probs_R1 = _log_probs(logits_UV, targets_U).repeat_interleave(counts_U)[:, None]
            weights_R1 = None
            if task.truncate_at is not None:
                today = _log_probs(logits_UV.detach() / temperature, targets_U).repeat_interleave(counts_U)
                results.weights.append(importance_weights(today, reference, float("inf")))
                weights_R1 = importance_weights(today, reference, task.truncate_at)[:, None]
            # The loss is a sum over tokens, so each token stands as a completion of its own and chunks add up.
            every_R1 = torch.ones_like(log_probs_R1, dtype=torch.bool)
            loss = grpo_loss(log_probs_R1, every_R1, advantages, task.num_tokens_total, weights_R1)
            gradients += torch.autograd.grad(loss, leaf_UD)
            results.loss += loss.item()
            log_probs.append(log_probs_R1.detach()[:, 0])
        hidden_UD.backward(torch.cat(gradients))
        return torch.cat(log_probs)

    def _read_attention(
        self,
        probe: AttentionProbe,
        row: int,
        group: ScoredGroup,
        index: int,
        prompt: PromptLayout,
        results: ReplayTotals,
    ) -> None:
        masks = (group.describes_a[index], group.describes_b[index])
        for image, mask_T, targets in zip(prompt.images, masks, results.targets, strict=True):
            # A token looks from the position where it is read, one column after the one that predicts it.
            columns_R = torch.from_numpy(np.flatnonzero(mask_T) + 1).to(self._backbone.device)
            rows_RN = renormalised_attention(probe.rows(row, columns_R)[:, image])
            targets.append(attention_targets(rows_RN))

    def _lay_out(self, grids: tuple[Grid, ...]) -> PromptLayout:
        if grids not in self._layouts:
            self._layouts[grids] = self._backbone.build_layout(self._prompt_ids, grids)
        return self._layouts[grids]

    @torch.no_grad()
    def _constant_head(self, prompt: PromptLayout) -> KeyValues | None:
        """Keys and values of the text before the first image; of text-first prompts that is nearly all of the text."""
        start = prompt.images[0].start
        if self._head is None and start:
            self._head = self._backbone.prefill(prompt, None, slice(0, start))
        return self._head


def _has_targets(group: ScoredGroup, index: int) -> bool:
    """True for a correct completion that describes both images: no other has attention targets."""
    return bool(group.is_correct_G[index] and group.describes_a[index].any() and group.describes_b[index].any())


def _log_probs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(logits_RV, targets_R, reduction="none")


def _back_propagate(prefix: KeyValues, leaves: KeyValues) -> None:
    """One backward through the prompt, from what all chunks left at its keys and values."""
    outputs = [tensor for layer in prefix for tensor in layer]
    gradients = [leaf.grad for layer in leaves for leaf in layer]
    torch.autograd.backward(outputs, gradients)
