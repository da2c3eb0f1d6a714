"""Replay of a verdict: the gradient of the verdict loss at the encoder tokens, in one forward and one backward pass.

    prompt with forced answer ── K, V ──► yes │ no ──► log p(yes), log p(no) ──► -log p(right) / P, backward to tokens

Both verdicts follow the same prompt, which runs once. Nothing is sampled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from saga_dist.data.forced_verdict import ForcedVerdict
from saga_dist.models.families.base import FrozenBackbone
from saga_dist.objectives.verdict import verdict_loss
from saga_dist.types import EncoderTokens, LogProbMismatch, TokenGradients, VerdictTask
from saga_dist.workers.prompt_prefill import PromptPrefill


class VerdictReplay:
    """Computes L_verdict of a pair and its gradient through the frozen language model.

    It keeps no state of a task: the same task gives the same gradients on any worker.

    Args:
        backbone: the frozen language model.
        forced: the prompt with the forced answer, and both verdicts.
    """

    def __init__(self, backbone: FrozenBackbone, forced: ForcedVerdict) -> None:
        self._backbone, self._forced = backbone, forced
        self._prompt = PromptPrefill(backbone, forced.prompt_ids)
        self._verdict_ids = {
            same: torch.tensor(ids, device=backbone.device) for same, ids in forced.verdict_ids.items()
        }

    def replay(self, task: VerdictTask, tokens: EncoderTokens) -> TokenGradients:
        """Returns dL_verdict/d(tokens) of one pair; there are no attention targets, because nothing is described.

        Args:
            task: the pair, and the number of pairs of the step.
            tokens: encoder tokens at which the gradient is taken; any floating dtype, any device.

        Raises:
            TokenError: the tokens do not fit the model.
        """
        right, wrong = self._verdict_ids[task.pair.same], self._verdict_ids[not task.pair.same]
        log_p_right, log_p_wrong, values_NW = self._log_probs(tokens, right, wrong)
        loss = verdict_loss(log_p_right, log_p_wrong) / task.num_pairs_total
        (gradient_NW,) = torch.autograd.grad(loss, values_NW)
        return TokenGradients(
            pair_id=tokens.pair_id,
            values_NW=gradient_NW.to(tokens.values_NW.device),
            attention_a_N=None,
            attention_b_N=None,
            negative_entropy=0.0,
            num_attended=0,
            loss=loss.item(),
            num_tokens=self._forced.num_tokens,
            mismatch=LogProbMismatch(log_prob_gap=0.0, mismatch_kl=0.0),
            encoder_version=tokens.encoder_version,
        )

    def _log_probs(
        self, tokens: EncoderTokens, right: torch.Tensor, wrong: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the log-probabilities of two continuations of the prompt, and the leaf [N, W] of their graph."""
        prompt, values_NW = self._prompt.load(tokens)
        values_NW.requires_grad_()
        prefix = self._prompt.keys_and_values(prompt, values_NW)
        last = prompt.token_ids_S[-1:]
        sequences = [torch.cat([last, ids[:-1]]) for ids in (right, wrong)]
        hidden_RD = self._backbone.forward_packed(prefix, sequences, prompt.next_position - 1).hidden_RD
        targets_R = torch.cat([right, wrong])
        log_probs_R = -F.cross_entropy(self._backbone.logits(hidden_RD), targets_R, reduction="none")
        log_p_right, log_p_wrong = (part.sum() for part in log_probs_R.split([len(right), len(wrong)]))
        return log_p_right, log_p_wrong, values_NW
