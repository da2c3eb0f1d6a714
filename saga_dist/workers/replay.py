"""Replay: computes the gradient of L_GRPO at the encoder tokens, and the MLLM's attention to the images.

The language model is frozen, so the encoder needs nothing from it but dL/d(tokens). One group:

    common prefix ── prompt ── K, V ──detach──► leaves ──► completions, in chunks ──► log-probs ──► L, backward to leaf
    (constant)          │                                     └► attention rows of one layer (no gradient)
                        └◄── one backward through the prompt, from the gradients of the leaves

The prompt runs once for all G completions. Equal completions run once, with their advantages added up. Activations
exist for at most ``completions_per_chunk`` completions and ``tokens_per_chunk`` of their tokens at a time, and logits
for ``logits_chunk`` positions. The keys and values of the text before the first image are constants of the run and are
computed once.

Where rollouts may be older than the encoder (``rollout.max_staleness`` > 0, an extension of the paper), the same
completions also run on the tokens that they were sampled from, without gradient. Both log-probabilities then come from
one program and from one distribution, the model at the sampling temperature, without the cut at top-p. So their ratio,
the importance weight, depends on the change of the encoder alone. The difference between engine and replay on the same
tokens is reported separately (``LogProbMismatch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from saga_dist.data.forced_verdict import force_verdict
from saga_dist.errors import ModelError
from saga_dist.models.families.base import AttentionProbe, Family, FrozenBackbone, PromptLayout
from saga_dist.models.families.key_values import KeyValues
from saga_dist.objectives.attention import attention_targets, renormalised_attention
from saga_dist.objectives.grpo import grpo_loss, importance_weights
from saga_dist.objectives.policy import model_log_probs, sampling_log_probs
from saga_dist.types import (
    EncoderTokens,
    GradientTask,
    ReplayTask,
    Sampling,
    ScoredGroup,
    TokenGradients,
    VerdictTask,
)
from saga_dist.workers.prompt_prefill import PromptPrefill
from saga_dist.workers.replay_chunks import (
    CPU_CHUNK_TOKENS,
    BehaviourLogProbs,
    Chunk,
    ReplayTotals,
    distinct_completions,
    packed_chunks,
    padded_chunks,
)
from saga_dist.workers.verdict_replay import VerdictReplay


class ReplayWorker:
    """Teacher-forced forward and backward through the frozen language model; implements ``protocols.ReplayWorker``.

    It keeps no state of a task: the same task gives the same gradients on any worker.

    Args:
        backbone: the frozen language model.
        family: family bound to the same checkpoint; its tokenizer encodes the prompt.
        prompt_text: the whole prompt, as the engine receives it, with one placeholder per image.
        kl_layer: decoder layer of the attention targets, counted from 0.
        verdict_key: JSON key of the verdict, which forced answers begin with.
        policy: distribution whose log-probabilities L_GRPO has (``objective.policy``).
        completions_per_chunk: largest number of completions whose activations exist at the same time.
        tokens_per_chunk: largest number of their tokens; on a CPU at most ``CPU_CHUNK_TOKENS``.
        logits_chunk: largest number of positions whose logits exist at the same time.

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
        verdict_key: str = "verdict",
        policy: Literal["model", "sampling"] = "model",
        completions_per_chunk: int = 8,
        tokens_per_chunk: int = 3072,
        logits_chunk: int = 1024,
    ) -> None:
        if not 0 <= kl_layer < backbone.num_layers:
            raise ModelError(
                f"objective.kl_layer = {kl_layer}",
                where=family.files.name,
                expected=f"a layer below {backbone.num_layers}",
                fix="set objective.kl_layer to about 3/4 of the depth",
            )
        self._backbone, self._tokenizer = backbone, family.load_tokenizer()
        self._prompt_text, self._verdict_key = prompt_text, verdict_key
        self._prompt = PromptPrefill(backbone, self._tokenizer.encode(prompt_text, add_special_tokens=False))
        self._kl_layer = kl_layer
        self._completions_per_chunk = completions_per_chunk
        on_cpu = backbone.device.type == "cpu"
        self._tokens_per_chunk = min(tokens_per_chunk, CPU_CHUNK_TOKENS) if on_cpu else tokens_per_chunk
        self._logits_chunk = logits_chunk
        self._policy, self._forbidden_ids = policy, family.forbidden_token_ids

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen weights."""
        return self._backbone.digest()

    def replay(
        self, task: GradientTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None
    ) -> TokenGradients:
        """Returns dL_GRPO/d(tokens) and the attention targets of one group, or dL_verdict/d(tokens) of one pair.

        Args:
            task: the group, the denominator of the step's buffer, and the truncation of importance weights; or the pair
                whose verdict is replayed (``VerdictReplay``).
            tokens: encoder tokens at which the gradient is taken; any floating dtype, any device.
            behaviour: older encoder tokens that the group was sampled from; None when they are ``tokens`` or lost.

        Raises:
            TokenError: the tokens do not fit the model.
            ModelError: a verdict is to be replayed, and the tokenizer does not tell the two verdicts apart.
        """
        if isinstance(task, VerdictTask):
            return self._verdicts.replay(task, tokens)
        prompt, values_NW = self._prompt.load(tokens)
        values_NW.requires_grad_()
        prefix = self._prompt.keys_and_values(prompt, values_NW)
        leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in prefix)

        chunks = self._chunks(task.group, prompt)
        behaviours = self._behaviour_log_probs(task.group, chunks, behaviour)
        totals = ReplayTotals()
        for chunk, log_probs in zip(chunks, behaviours, strict=True):
            self._replay_chunk(task, chunk, prompt, log_probs, leaves, totals)
        _back_propagate(prefix, leaves)
        return totals.collect(task, values_NW, tokens)

    @cached_property
    def _verdicts(self) -> VerdictReplay:
        """Replay of verdicts, which shares the backbone; built for the first task that needs it."""
        forced = force_verdict(self._tokenizer, self._prompt_text, self._verdict_key)
        return VerdictReplay(self._backbone, forced)

    def _chunks(self, group: ScoredGroup, prompt: PromptLayout) -> list[Chunk]:
        """Returns the distinct completions of a group, divided into chunks."""
        token_ids = group.completions.token_ids
        copies = distinct_completions(token_ids)
        divide = packed_chunks if self._backbone.supports_packing else padded_chunks
        lengths = [len(token_ids[indices[0]]) for indices in copies]
        parts = divide(lengths, self._completions_per_chunk, self._tokens_per_chunk)
        return [Chunk.of(group, [copies[row] for row in part], prompt, self._backbone.device) for part in parts]

    @torch.no_grad()
    def _behaviour_log_probs(
        self, group: ScoredGroup, chunks: Sequence[Chunk], behaviour: EncoderTokens | None
    ) -> list[BehaviourLogProbs]:
        """Returns for each chunk the log-probabilities with the tokens that the group was sampled from."""
        log_probs = [torch.tensor(log_probs_T) for log_probs_T in group.completions.log_probs]
        engine = [chunk.in_order(log_probs) for chunk in chunks]
        if behaviour is None:
            return [BehaviourLogProbs(engine_R) for engine_R in engine]
        prompt, values_NW = self._prompt.load(behaviour)
        prefix = self._prompt.keys_and_values(prompt, values_NW)
        behaviours = []
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
                plain.append(model_log_probs(logits_UV, targets_U))
                tempered.append(model_log_probs(logits_UV / group.completions.sampling.temperature, targets_U))
            plain_R, tempered_R = (torch.cat(each).repeat_interleave(chunk.counts()) for each in (plain, tempered))
            behaviours.append(BehaviourLogProbs(engine_R, plain_R, tempered_R))
        return behaviours

    def _replay_chunk(
        self,
        task: ReplayTask,
        chunk: Chunk,
        prompt: PromptLayout,
        behaviour: BehaviourLogProbs,
        leaves: KeyValues,
        totals: ReplayTotals,
    ) -> None:
        """Back-propagates the loss of one chunk to the leaves and adds its results to ``totals``."""
        attended = [
            (row, index)
            for row, indices in enumerate(chunk.copies)
            for index in indices
            if task.want_attention and _has_targets(task.group, index)
        ]
        run = self._backbone.forward_packed(
            leaves, chunk.sequences, prompt.next_position - 1, probe_layer=self._kl_layer if attended else None
        )
        log_probs_R = self._back_propagate_loss(task, chunk, chunk.predictors(run.hidden_RD), behaviour, totals)
        totals.compare(chunk, behaviour.engine_R, log_probs_R if behaviour.replay_R is None else behaviour.replay_R)
        for row, index in attended:
            assert run.probe is not None
            self._add_attention_targets(run.probe, row, task.group, index, prompt, totals)

    def _back_propagate_loss(
        self,
        task: ReplayTask,
        chunk: Chunk,
        hidden_UD: torch.Tensor,
        behaviour: BehaviourLogProbs,
        totals: ReplayTotals,
    ) -> torch.Tensor:
        """Back-propagates L_GRPO of R generated tokens to the leaves; returns their log-probabilities [R]."""
        size, sampling = self._logits_chunk, task.group.completions.sampling
        advantages_R, counts = chunk.per_token(torch.tensor(task.group.advantages_G)), chunk.counts().split(size)
        is_stale = behaviour.tempered_R is not None
        reference_R = behaviour.engine_R if behaviour.tempered_R is None else behaviour.tempered_R
        sizes = [int(counts_U.sum()) for counts_U in counts]
        gradients, log_probs = [], []
        for leaf_UD, targets_U, counts_U, advantages, reference in zip(
            hidden_UD.detach().split(size),
            chunk.targets_U.split(size),
            counts,
            advantages_R.split(sizes),
            reference_R.to(hidden_UD.device).split(sizes),
            strict=True,
        ):
            logits_UV = self._backbone.logits(leaf_UD.requires_grad_())
            log_probs_U = self._log_probs(logits_UV, targets_U, sampling)
            log_probs_R1 = log_probs_U.repeat_interleave(counts_U)[:, None]
            weights_R1 = None
            if task.truncate_at is not None:  # the engine reports log-probabilities of the policy
                current_U = model_log_probs(logits_UV / sampling.temperature, targets_U) if is_stale else log_probs_U
                current = current_U.detach().repeat_interleave(counts_U)
                totals.weights.append(importance_weights(current, reference, float("inf")))
                weights_R1 = importance_weights(current, reference, task.truncate_at)[:, None]
            # The loss is a sum over tokens, so each token can be passed as a completion of length 1, and the losses of
            # chunks add up to that of the group.
            mask_R1 = torch.ones_like(log_probs_R1, dtype=torch.bool)
            loss = grpo_loss(log_probs_R1, mask_R1, advantages, task.num_tokens_total, weights_R1)
            gradients += torch.autograd.grad(loss, leaf_UD)
            totals.loss += loss.item()
            log_probs.append(log_probs_R1.detach()[:, 0])
        hidden_UD.backward(torch.cat(gradients))
        return torch.cat(log_probs)

    def _log_probs(self, logits_UV: torch.Tensor, targets_U: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        """Returns the log-probabilities [U] of the targets under the policy."""
        if self._policy == "model":
            return model_log_probs(logits_UV, targets_U)
        return sampling_log_probs(
            logits_UV,
            targets_U,
            temperature_R=logits_UV.new_tensor(sampling.temperature).expand(len(targets_U)),
            top_p_R=logits_UV.new_tensor(sampling.top_p).expand(len(targets_U)),
            forbidden_ids=self._forbidden_ids,
        )

    def _add_attention_targets(
        self,
        probe: AttentionProbe,
        row: int,
        group: ScoredGroup,
        index: int,
        prompt: PromptLayout,
        totals: ReplayTotals,
    ) -> None:
        """Adds the attention targets of one completion, row ``row`` of the probe, to ``totals``."""
        masks = (group.describes_a[index], group.describes_b[index])
        for image, mask_T, targets in zip(prompt.images, masks, totals.targets, strict=True):
            # The attention of a token is that of the query at its own position, one column after the position that
            # predicts it.
            columns_R = torch.from_numpy(np.flatnonzero(mask_T) + 1).to(self._backbone.device)
            rows_RN = renormalised_attention(probe.rows(row, columns_R)[:, image])
            targets.append(attention_targets(rows_RN))


def _has_targets(group: ScoredGroup, index: int) -> bool:
    """Returns True for a correct completion that describes both images; no other completion has attention targets."""
    return bool(group.is_correct_G[index] and group.describes_a[index].any() and group.describes_b[index].any())


def _back_propagate(prefix: KeyValues, leaves: KeyValues) -> None:
    """Runs one backward pass through the prompt, from the gradients of all chunks at its keys and values."""
    outputs = [tensor for layer in prefix for tensor in layer]
    gradients = [leaf.grad for layer in leaves for leaf in layer]
    torch.autograd.backward(outputs, gradients)
