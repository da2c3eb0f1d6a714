"""The rollout worker: encoder tokens of pairs in, scored groups of completions out.

It holds one engine and no state that matters: a task gives the same group on any worker and on every retry. Three kinds
of trouble are told apart. Tokens that do not fit the model are the caller's mistake: the call fails, and no engine ever
sees them. An engine that raises or runs out of time is thrown away; the error goes to the caller, who may retry here or
lease the task elsewhere, and the next call starts a new engine. Text that makes no sense is no trouble:
the reward scores it.
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
        engine_factory: starts an engine; called once now and again after every failure of an engine.
        family: of the MLLM: knows the sizes of its tokens and its tokenizer.
        prompt: the comparison prompt that the engine asks; names the JSON keys.
        reward: scores each distinct completion of a pair.
        dtype: of token values on the wire.
        advantage_epsilon: added to the standard deviation of a group's rewards.
        deadline_s: longest time for one call, seconds.

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
        self.num_tokens = 0
        self.num_refused = 0
        """Calls refused because of their tokens."""
        self.num_engine_failures = 0
        self.num_engines = 0
        """Engines started, the first one included."""
        self.generate_s = 0.0
        self.start_s = 0.0
        self._engine: Engine | None = None
        self._ready_engine()

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one scored group per task, in order.

        Args:
            tasks: the groups to generate.
            tokens: the opened token handle of each task.

        Raises:
            TokenError: tokens do not fit the model or belong to another pair; nothing was generated.
            EngineError: the engine failed, or a new one did not start; the call may be repeated.
            DeadlineExceeded: not finished in time; the call may be repeated.
            ConfigError: a reward of the user's own failed, or its result is none.

        Source: SAGA Eq. 2 (G completions of a pair, sampled without gradient).
        """
        self._check(tasks, tokens)
        engine = self._ready_engine()
        started = time.monotonic()
        try:
            completions = engine.generate(tokens, [task.sampling for task in tasks], deadline_s=self._deadline_s)
        except UserError:
            raise  # refused before the engine did anything
        except WorkerError as error:
            self._discard_engine(error)
            raise
        except Exception as error:  # decided here: whatever an engine raises, it is not used again
            self._discard_engine(error)
            raise EngineError(f"{type(error).__name__}: {error}", where="rollout engine") from error
        self.generate_s += time.monotonic() - started
        groups = [self._score(task.pair, drawn) for task, drawn in zip(tasks, completions, strict=True)]
        self.num_groups += len(groups)
        self.num_tokens += sum(group.num_tokens for group in groups)
        return groups

    def stats(self) -> dict[str, float]:
        """Returns this worker's counters since it began."""
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
        """Frees the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _check(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> None:
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
        if self._engine is None:
            started = time.monotonic()
            self._engine = self._engine_factory()
            self.num_engines += 1
            self.start_s += time.monotonic() - started
            log.info("rollout engine %d started in %.1f s", self.num_engines, time.monotonic() - started)
        return self._engine

    def _discard_engine(self, error: Exception) -> None:
        """Frees a failed engine at once; the next call starts another, so the caller hears of the failure first."""
        self.num_engine_failures += 1
        log.warning("rollout engine failed, a new one will be started: %s", error)
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        except Exception:  # decided here: a broken engine that cannot even be closed must not hide why it broke
            log.warning("the failed engine could not be closed", exc_info=True)

    def _score(self, pair: ImagePair, completions: Completions) -> ScoredGroup:
        """Verdicts, rewards, advantages and the tokens that describe each image."""
        # Completions of a group are often equal: each distinct one is read once.
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
        """Float32 [G]; a single completion, as evaluation asks for, has nothing to be better than."""
        if len(rewards_G) == 1:
            return np.zeros(1, dtype=np.float32)
        return group_advantages(rewards_G, self._advantage_epsilon).advantages.numpy()

    def _masks(self, text: str, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Bool [T] for image a and image b; all False where the text describes neither."""
        if not self._prompt.describes_images:
            return np.zeros(len(token_ids), dtype=bool), np.zeros(len(token_ids), dtype=bool)
        span_a, span_b = description_spans(text, self._prompt.key_a, self._prompt.key_b)
        offsets_T2 = token_offsets_from_decode(self._tokenizer, token_ids)
        return token_masks(offsets_T2, span_a).numpy(), token_masks(offsets_T2, span_b).numpy()
