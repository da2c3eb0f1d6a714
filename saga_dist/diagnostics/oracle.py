"""The oracle: training with the true answer in place of sampled completions.

The true answer to a pair (the colour of each part, the differences, the verdict) is replayed as the only completion of
its group, with advantage 1. ``ReplayWorker`` then returns the gradient of the answer's log-likelihood at the encoder
tokens, divided by the step's number of tokens as L_GRPO is, and the attention of its tokens. The best that a policy
gradient can do is to prefer this text. So where the oracle gains nothing, GRPO has little to gain.

Learner, metric loss, replay, attention alignment and optimizer are those of every run; only the rollout is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.objectives.spans import description_spans, token_masks, token_offsets_from_decode
from saga_dist.runtime.build import build_family, build_prompt, build_replay_worker
from saga_dist.standin.language import answer_text
from saga_dist.standin.pair_model import END_OF_TURN
from saga_dist.types import (
    Completions,
    EncoderTokens,
    ImagePair,
    ReplayTask,
    Sampling,
    ScoredGroup,
    StepResult,
    TokenGradients,
)
from saga_dist.workers.learner import Learner


class Oracle:
    """Builds the true answer to each training pair from the attributes of its images, and replays it.

    Args:
        config: provides the model, the prompt and the decoder layer of the attention targets.
        attributes_IA: int64 [I, A], part values of all training images, in the order of ``language.PARTS``.
    """

    def __init__(self, config: RunConfig, attributes_IA: np.ndarray) -> None:
        self._tokenizer = build_family(config).load_tokenizer()
        self._prompt = build_prompt(config)
        self._replay = build_replay_worker(config)
        self._attributes_IA = attributes_IA

    def group(self, pair: ImagePair, *, encoder_version: int) -> ScoredGroup:
        """Returns the true answer as a group of one completion with reward and advantage 1.

        Args:
            pair: two images of the training split.
            encoder_version: encoder version to record in the completion.
        """
        values_a, values_b = (self._attributes_IA[image] for image in (pair.image_a, pair.image_b))
        text = answer_text(values_a, values_b, spec=self._prompt)
        token_ids = [*self._tokenizer.encode(text, add_special_tokens=False), END_OF_TURN]
        offsets_T2 = token_offsets_from_decode(self._tokenizer, token_ids)
        keys = (self._prompt.key_a, self._prompt.key_b)
        spans = description_spans(text, *keys) if self._prompt.describes_images else (None, None)
        describes_a, describes_b = (token_masks(offsets_T2, span).numpy() for span in spans)
        completions = Completions(
            pair_id=pair.pair_id,
            token_ids=(tuple(token_ids),),
            texts=(text,),
            log_probs=(np.zeros(len(token_ids), np.float32),),  # a placeholder: the answer was not sampled
            finish_reasons=("stop",),
            sampling=Sampling(num_completions=1, temperature=1.0, top_p=1.0, max_tokens=len(token_ids), seed=0),
            encoder_version=encoder_version,
        )
        one_G = np.ones(1, np.float32)
        return ScoredGroup(
            pair=pair,
            completions=completions,
            verdicts=(pair.same,),
            rewards_G=one_G,
            is_correct_G=np.ones(1, bool),
            advantages_G=one_G,
            describes_a=(describes_a,),
            describes_b=(describes_b,),
        )

    def gradients(
        self, pairs: Sequence[ImagePair], tokens: Sequence[EncoderTokens], *, want_attention: bool
    ) -> list[TokenGradients]:
        """Returns, for each pair, the gradient of the mean negative log-likelihood of the true answers.

        The mean is over the tokens of all pairs. The records have attention targets too if ``want_attention`` is set.

        Args:
            pairs: pairs of training images.
            tokens: encoder tokens of each pair.
            want_attention: True to compute the attention targets.
        """
        groups = [
            self.group(pair, encoder_version=record.encoder_version) for pair, record in zip(pairs, tokens, strict=True)
        ]
        total = sum(group.num_tokens for group in groups)
        return [
            self._replay.replay(ReplayTask(group, record, total, want_attention), record)
            for group, record in zip(groups, tokens, strict=True)
        ]


def train_step(learner: Learner, sampler: ClassBalancedSampler, config: RunConfig, oracle: Oracle | None) -> StepResult:
    """Takes one optimizer step on one micro-batch; without an oracle, on the metric loss alone.

    Args:
        learner: the learner to update.
        sampler: provides the micro-batch of the learner's step.
        config: provides the number of pairs and the weights of the losses.
        oracle: provides the gradients of the true answers; None for the metric loss alone.
    """
    pairs = config.rollout.pairs_per_batch if oracle and config.objective.needs_mllm else 0
    batch = sampler.micro_batch(learner.step, 0, pairs)
    encoded = learner.encode(batch)
    if oracle is None or not pairs:
        return learner.finish_step([])
    want_attention = config.objective.lambda_kl > 0
    return learner.finish_step(oracle.gradients(batch.pairs, encoded.handles, want_attention=want_attention))
