"""The rollout worker: generates completions from the encoder tokens of pairs and scores them.

It holds one engine and no state that affects results: a task gives the same group on any worker and on every retry.
``rollout`` generates a set of groups together. ``advance`` feeds an engine that groups can join and leave
(``StreamingEngine``): it returns groups as they are finished, so that others can take their place in the batch.

Failures are of two kinds. Tokens that do not fit the model are an error of the caller: the call fails before the tokens
reach the engine. An engine that raises or exceeds its deadline is discarded; the caller gets the error and may retry
here or on another worker, and the next call starts a new engine. Completions that cannot be parsed are no failure: the
reward scores them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import EngineError, TokenError, UserError, WorkerError
from saga_dist.models.families.base import Family
from saga_dist.objectives.reward_fn import RewardFn, score_verdict
from saga_dist.protocols import Engine
from saga_dist.types import Completions, EncoderTokens, ImagePair, RolloutTask, ScoredGroup
from saga_dist.workers.engines.deadlines import groups_too_late
from saga_dist.workers.engines.streaming import as_streaming
from saga_dist.workers.engines.validation import validate_tokens
from saga_dist.workers.group_scoring import GroupScorer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A group in the engine's batch."""

    pair: ImagePair
    """The pair."""
    deadline: float
    """Time of ``time.monotonic`` by which the group has to be finished."""


class RolloutWorker:
    """Generates and scores groups; implements ``protocols.RolloutWorker``.

    Args:
        engine_factory: starts an engine; called by the constructor, and again after every failure of an engine.
        family: family of the MLLM, with the sizes of its tokens and its tokenizer.
        prompt: the comparison prompt of the engine; it has the JSON keys of the answer.
        dtype: dtype of the token values on the wire.
        advantage_epsilon: added to the standard deviation of a group's rewards.
        deadline_s: longest time for one call of ``rollout``, and for each group of ``advance``, seconds.
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
        self._scorer = GroupScorer(family.load_tokenizer(), prompt, reward, advantage_epsilon)
        self._deadline_s = deadline_s
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
        self._in_flight: dict[str, _InFlight] = {}
        """Groups in the engine's batch, by pair id."""
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
        with self._engine_until_it_fails() as engine:
            completions = engine.generate(tokens, [task.sampling for task in tasks], deadline_s=self._deadline_s)
        return self._scored([task.pair for task in tasks], completions)

    @property
    def can_be_fed(self) -> bool:
        """True when ``advance`` may be called: groups can join and leave the engine's batch."""
        return as_streaming(self._ready_engine()) is not None

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of the pairs whose groups are in the engine's batch."""
        return tuple(self._in_flight)

    def advance(
        self,
        tasks: Sequence[RolloutTask],
        tokens: Sequence[EncoderTokens],
        *,
        cancelled: Collection[str] = (),
        interrupted: Callable[[], bool] = lambda: False,
    ) -> list[ScoredGroup]:
        """Generates until a group is finished, or until ``interrupted()``; returns the groups that are finished.

        All other groups stay in the engine's batch for the next call. A ``TokenError`` or ``ConfigError`` leaves the
        batch usable; after any other error no group is in flight.

        Args:
            tasks: groups that join the batch.
            tokens: encoder tokens of each task's pair.
            cancelled: ids of pairs whose groups leave the batch first; other ids are ignored.
            interrupted: called after every step of the engine; True ends the call.

        Raises:
            TokenError: tokens do not fit the model or belong to another pair; no task of the call was added.
            EngineError: the engine failed, or a new one did not start; the tasks may be given to it again.
            DeadlineExceeded: a group was not finished in time; the tasks may be given to it again.
            ConfigError: a user's reward function raised, or returned something that is not a reward.
        """
        with self._engine_until_it_fails() as plain:
            engine = as_streaming(plain)
            assert engine is not None, f"{type(plain).__name__} cannot be fed"
            engine.abort(cancelled)
            for pair_id in cancelled:
                self._in_flight.pop(pair_id, None)
            self._check(tasks, tokens)
            for task, record in zip(tasks, tokens, strict=True):
                engine.add(record, task.sampling)
                self._in_flight[task.pair_id] = _InFlight(task.pair, time.monotonic() + self._deadline_s)
            finished: list[Completions] = []
            while self._in_flight and not finished:
                self._check_deadlines()
                finished = engine.step()
                if interrupted():
                    break
            pairs = [self._take(group) for group in finished]
        return self._scored(pairs, finished)

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

    def _take(self, group: Completions) -> ImagePair:
        """Takes a finished group off those in flight; returns its pair.

        Raises:
            EngineError: the group is not in flight.
        """
        if group.pair_id not in self._in_flight:
            raise EngineError(f"a group of pair {group.pair_id}, which is not in flight", where="rollout engine")
        return self._in_flight.pop(group.pair_id).pair

    def _check_deadlines(self) -> None:
        """Raises ``DeadlineExceeded`` when a group has been in flight for ``deadline_s`` seconds."""
        now = time.monotonic()
        if num_late := sum(now >= group.deadline for group in self._in_flight.values()):
            raise groups_too_late(num_late, len(self._in_flight), self._deadline_s, where="rollout engine")

    @contextmanager
    def _engine_until_it_fails(self) -> Iterator[Engine]:
        """Yields the engine for a block of calls, which is timed; discards it when they fail.

        Raises:
            UserError: a request was rejected before the engine started on it, so the engine is kept.
            WorkerError: the engine failed.
        """
        engine = self._ready_engine()
        started = time.monotonic()
        try:
            yield engine
        except UserError:
            raise
        except WorkerError as error:
            self._discard_engine(error)
            raise
        except Exception as error:  # handled here: an engine that raised anything is not used again
            self._discard_engine(error)
            raise EngineError(f"{type(error).__name__}: {error}", where="rollout engine") from error
        self.generate_s += time.monotonic() - started

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
        self._in_flight.clear()
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        except Exception:  # handled here: an error on closing must not hide the error that broke the engine
            log.warning("the failed engine could not be closed", exc_info=True)

    def _scored(self, pairs: Sequence[ImagePair], completions: Sequence[Completions]) -> list[ScoredGroup]:
        """Returns the scored group of each pair, and counts them."""
        groups = [self._scorer.score(pair, drawn) for pair, drawn in zip(pairs, completions, strict=True)]
        self.num_groups += len(groups)
        self.num_tokens += sum(group.num_tokens for group in groups)
        return groups
