"""The rollout worker: generates completions from the encoder tokens of pairs and scores them.

It holds one engine and no state that affects results: a task gives the same group on any worker and on every retry.
Failures are of two kinds. Tokens that do not fit the model are an error of the caller: the call fails before the tokens
reach the engine. An engine that raises or exceeds its deadline is discarded; the caller gets the error and may retry
here or on another worker, and the next call starts a new engine. Completions that cannot be parsed are no failure: the
reward scores them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import EngineError, TokenError, UserError, WorkerError
from saga_dist.models.families.base import Family
from saga_dist.objectives.advantage import group_advantages
from saga_dist.objectives.reward import parse_verdict
from saga_dist.objectives.reward_fn import RewardFn, score_verdict
from saga_dist.objectives.spans import description_spans, token_masks, token_offsets_from_decode
from saga_dist.protocols import Engine
from saga_dist.types import Completions, EncoderTokens, ImagePair, RolloutTask, ScoredGroup
from saga_dist.workers.engines.validation import validate_tokens

log = logging.getLogger(__name__)


class RolloutWorker:
    """Generates and scores groups; implements ``protocols.RolloutWorker``.

    Args:
        engine_factory: starts an engine; called by the constructor, and again after every failure of an engine.
        family: family of the MLLM, with the sizes of its tokens and its tokenizer.
        prompt: the comparison prompt of the engine; it has the JSON keys of the answer.
        dtype: dtype of the token values on the wire.
        advantage_epsilon: added to the standard deviation of a group's rewards.
        deadline_s: longest time for one call of the engine, seconds.
        reward: scores each distinct completion of a pair.

    Raises:
        EngineError: the first engine did not start.
    """

    def __init__(
        self,
        engine_factory: Callable[[], Engine],
        *,
        family: Family,
        prompt: PromptSpec,
        dtype: torch.dtype,
        advantage_epsilon: float,
        deadline_s: float,
        reward: RewardFn = score_verdict,
    ) -> None:
        self._engine_factory = engine_factory
        self._layout, self._dtype = family.layout, dtype
        self._tokenizer, self._prompt, self._reward = family.load_tokenizer(), prompt, reward
        self._advantage_epsilon, self._deadline_s = advantage_epsilon, deadline_s
        self.num_groups = 0
        """Number of groups generated."""
        self.num_tokens = 0
        """Number of tokens generated."""
        self.num_refused = 0
        """Number of calls that failed because their tokens do not fit the model."""
        self.num_engine_failures = 0
        """Number of engines discarded."""
        self.num_engines = 0
        """Number of engines started, the first one included."""
        self.generate_s = 0.0
        """Seconds spent in the engine, failed calls not counted."""
        self.start_s = 0.0
        """Seconds spent on starting engines."""
        self._engine: Engine | None = None
        self._ready_engine()

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one scored group per task, in order.

        Args:
            tasks: the groups to generate.
            tokens: encoder tokens of each task's pair.

        Raises:
            TokenError: tokens do not fit the model or belong to another pair; nothing was generated.
            EngineError: the engine failed, or a new one did not start; the call may be repeated.
            DeadlineExceeded: the engine did not finish in time; the call may be repeated.
            ConfigError: a user's reward function raised, or returned something that is not a reward.

        Source: SAGA Eq. 2 (G completions of a pair, sampled without gradient).
        """
        self._check(tasks, tokens)
        engine = self._ready_engine()
        started = time.monotonic()
        try:
            completions = engine.generate(tokens, [task.sampling for task in tasks], deadline_s=self._deadline_s)
        except UserError:
            raise  # the request was rejected before the engine started on it, so the engine is intact
        except WorkerError as error:
            self._discard_engine(error)
            raise
        except Exception as error:  # handled here: an engine that raised anything is not used again
            self._discard_engine(error)
            raise EngineError(f"{type(error).__name__}: {error}", where="rollout engine") from error
        self.generate_s += time.monotonic() - started
        groups = [self._score(task.pair, drawn) for task, drawn in zip(tasks, completions, strict=True)]
        self.num_groups += len(groups)
        self.num_tokens += sum(group.num_tokens for group in groups)
        return groups

    def stats(self) -> dict[str, float]:
        """Returns the worker's counters since its start."""
        return {
            "groups": float(self.num_groups),
            "tokens": float(self.num_tokens),
            "refused_calls": float(self.num_refused),
            "engine_failures": float(self.num_engine_failures),
            "engine_replacements": float(max(self.num_engines - 1, 0)),
            "generate_s": self.generate_s,
            "engine_start_s": self.start_s,
        }

    def close(self) -> None:
        """Closes the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _check(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> None:
        """Checks that all tokens belong to their tasks and fit the model.

        Raises:
            TokenError: they do not.
        """
        try:
            for task, record in zip(tasks, tokens, strict=True):
                if record.pair_id != task.pair.pair_id:
                    raise TokenError(
                        f"tokens of pair {record.pair_id}",
                        where=f"task {task.pair.pair_id}",
                        expected="the task's own tokens",
                        fix="pass tokens in the order of the tasks",
                    )
                validate_tokens(
                    record,
                    width=self._layout.width,
                    num_deepstack=self._layout.num_deepstack,
                    merge_size=self._layout.merge_size,
                    dtype=self._dtype,
                )
        except TokenError:
            self.num_refused += 1
            raise

    def _ready_engine(self) -> Engine:
        """Returns the engine; starts one when there is none."""
        if self._engine is None:
            started = time.monotonic()
            self._engine = self._engine_factory()
            self.num_engines += 1
            self.start_s += time.monotonic() - started
            log.info("rollout engine %d started in %.1f s", self.num_engines, time.monotonic() - started)
        return self._engine

    def _discard_engine(self, error: Exception) -> None:
        """Closes a failed engine. The next call starts a new one, so that the caller gets the error without delay."""
        self.num_engine_failures += 1
        log.warning("rollout engine failed, a new one will be started: %s", error)
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        except Exception:  # handled here: an error on closing must not hide the error that broke the engine
            log.warning("the failed engine could not be closed", exc_info=True)

    def _score(self, pair: ImagePair, completions: Completions) -> ScoredGroup:
        """Returns the group with verdicts, rewards, advantages and the tokens that describe each image."""
        # Completions of a group are often equal, so each distinct one is parsed and scored once.
        result_of = {text: self._reward(text, pair, self._prompt) for text in dict.fromkeys(completions.texts)}
        verdict_of = {text: parse_verdict(text, self._prompt.verdict_key) for text in result_of}
        values, is_correct = zip(*(result_of[text] for text in completions.texts), strict=True)
        rewards_G = torch.tensor(values, dtype=torch.float32)
        distinct = dict(zip(completions.token_ids, completions.texts, strict=True))
        masks_of = {ids: self._masks(text, ids) for ids, text in distinct.items()}
        masks = [masks_of[ids] for ids in completions.token_ids]
        return ScoredGroup(
            pair=pair,
            completions=completions,
            verdicts=tuple(verdict_of[text] for text in completions.texts),
            rewards_G=rewards_G.numpy(),
            is_correct_G=np.array(is_correct, dtype=bool),
            advantages_G=self._advantages(rewards_G),
            describes_a=tuple(mask_a for mask_a, _ in masks),
            describes_b=tuple(mask_b for _, mask_b in masks),
        )

    def _advantages(self, rewards_G: torch.Tensor) -> np.ndarray:
        """Returns float32 [G]; 0 for a single completion (evaluation), which has no group to be compared with."""
        if len(rewards_G) == 1:
            return np.zeros(1, dtype=np.float32)
        return group_advantages(rewards_G, self._advantage_epsilon).advantages.numpy()

    def _masks(self, text: str, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool [T] for image a and for image b, True for its description; all False without a description."""
        if not self._prompt.describes_images:
            return np.zeros(len(token_ids), dtype=bool), np.zeros(len(token_ids), dtype=bool)
        prompt = self._prompt
        spans = description_spans(text, prompt.key_a, prompt.key_b, verdict_key=prompt.verdict_key, keys=prompt.keys)
        offsets_T2 = token_offsets_from_decode(self._tokenizer, token_ids)
        mask_a, mask_b = (token_masks(offsets_T2, span).numpy() for span in spans)
        return mask_a, mask_b
