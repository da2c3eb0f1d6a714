"""Rollouts as a stream: a step's groups on demand and, where staleness is allowed, ahead of demand.

With ``rollout.max_staleness`` = S > 0, the batches of the next S steps are encoded as today's encoder sees them and
their rollouts run while the learner works on this step. Batches, pairs and sampling seeds come from counters, so
running ahead changes which encoder a group was sampled with, never which group it is.

    step s      encode_ahead(s + S) ──► pool ──────────── (workers busy) ────────────► groups, taken at step s + S
                encode(s), groups of s (begun at step s - S), replay, update

A step takes its own groups only, in order of submission. How old they are is looked at when they are taken; a group
that is too old is generated again from today's tokens. What waits is bounded: S steps, ``rollout.ahead_budget_mb``.

What it waits for: ``pool.collect``, which always ends. Nobody waits for the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import TrainingError
from saga_dist.protocols import EncodedBatch, Runtime
from saga_dist.types import ImagePair, MicroBatch, Quarantined, RolloutTask, Sampling, ScoredGroup
from saga_dist.utils.rng import counter_seed

Outcome = ScoredGroup | Quarantined


class RolloutSource(Protocol):
    """Where a step's groups come from: workers, or a recording."""

    def prefetch(self, step: int) -> None:
        """Starts what later steps will need; returns at once."""

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns one outcome per pair of the batch, in its order."""

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the handle of the older tokens that a group of the open step was sampled from (None: today's, or
        lost), and where to truncate its importance weights (None: the group is on-policy, every weight is 1)."""

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Forgets what the step held; returns its numbers, named ``stage/quantity``.

        Args:
            step: that has ended.
            num_batches: micro-batches it took.
        """

    def forget(self) -> None:
        """Drops everything under way: the learner starts again from a checkpoint."""


@dataclass(slots=True)
class _Prefetched:
    """A batch whose rollouts run before its step has come."""

    batch: MicroBatch
    encoded: EncodedBatch


@dataclass(slots=True)
class _Counts:
    ages: list[int] = field(default_factory=list)
    too_old: int = 0
    surplus: int = 0
    held_back: int = 0


class WorkerRolloutSource:
    """Groups from the runtime's rollout workers; implements ``RolloutSource``.

    Args:
        config: of the run.
        runtime: learner (to encode ahead) and rollout pool.
        sampler: the stream of micro-batches.
        pause: called whenever results have come in; may raise to leave the step.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        sampler: ClassBalancedSampler,
        *,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._runtime, self._sampler, self._pause = config, runtime, sampler, pause
        self._ahead: dict[tuple[int, int], _Prefetched] = {}
        """By (step, index of the micro-batch)."""
        self._arrived: dict[str, Outcome] = {}
        self._unwanted: set[str] = set()
        """Pairs that are under way but whose step has ended without them."""
        self._behaviour: dict[str, Any] = {}
        """Handles of the tokens that stale pairs of the open step were sampled from."""
        self._batches_per_step = 1
        self._counts = _Counts()

    def prefetch(self, step: int) -> None:
        """Encodes the batches of this and the next S steps and starts their rollouts; what is under way already stays.

        As many batches a step as the last one needed; further ones are generated on demand.
        """
        if not self._config.rollout.max_staleness:
            return
        last = min(step + self._config.rollout.max_staleness, self._config.run.steps - 1)
        for later in range(step, last + 1):
            for index in range(self._batches_per_step):
                if (later, index) in self._ahead:
                    continue
                if self._bytes_ahead() >= self._config.rollout.ahead_budget_mb << 20:
                    self._counts.held_back += 1
                    return
                batch = self._sampler.micro_batch(later, index, self._config.rollout.pairs_per_batch)
                encoded = self._runtime.learner.encode_no_grad(batch)
                self._ahead[later, index] = _Prefetched(batch, encoded)
                self._submit(batch.pairs, encoded.handles)

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns the outcome of every pair of a batch of the open step, in its order; waits for those under way.

        Args:
            batch: a micro-batch of today's step.
            encoded: its tokens at today's version: where what did not run ahead is generated from.
        """
        begun = self._ahead.pop((batch.step, batch.index), None)
        if begun is None:
            self._submit(batch.pairs, encoded.handles)
        else:
            self._behaviour.update(_by_pair(batch.pairs, begun.encoded.handles))
        outcomes = self._collect(batch.pairs)
        old = [pair for pair, outcome in zip(batch.pairs, outcomes, strict=True) if self._is_too_old(batch, outcome)]
        if old:
            self._counts.too_old += len(old)
            today = _by_pair(batch.pairs, encoded.handles)
            for pair in old:
                self._behaviour.pop(pair.pair_id, None)
            self._submit(old, [today[pair.pair_id] for pair in old])
            renewed = dict(zip(old, self._collect(old), strict=True))
            outcomes = [renewed.get(pair, outcome) for pair, outcome in zip(batch.pairs, outcomes, strict=True)]
        groups = [outcome for outcome in outcomes if isinstance(outcome, ScoredGroup)]
        self._counts.ages += [batch.step - group.completions.encoder_version for group in groups]
        return outcomes

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the older tokens a group of the open step was sampled from, and its truncation; None, None for
        today's."""
        if group.completions.encoder_version == step:
            return None, None
        return self._behaviour[group.pair_id], self._config.rollout.importance_truncation

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Forgets the open step and returns how old its groups were; what ran ahead for nothing is surplus."""
        self._behaviour.clear()
        for key in [key for key in self._ahead if key[0] == step]:
            self._give_up(self._ahead.pop(key).batch.pairs)
        self._batches_per_step = max(1, num_batches)
        counts, self._counts = self._counts, _Counts()
        if not self._config.rollout.max_staleness:
            return {}
        return {
            "staleness/versions_mean": sum(counts.ages) / max(1, len(counts.ages)),
            "staleness/too_old_groups": float(counts.too_old),
            "staleness/surplus_groups": float(counts.surplus),
            "staleness/held_back": float(counts.held_back),
            "staleness/ahead_bytes": float(self._bytes_ahead()),
        } | {
            f"staleness/groups_at_{age}": float(counts.ages.count(age))
            for age in range(self._config.rollout.max_staleness + 1)
        }

    def forget(self) -> None:
        """Drops all rollouts under way."""
        self._runtime.rollouts.forget()
        for store in (self._ahead, self._arrived, self._unwanted, self._behaviour):
            store.clear()

    def _submit(self, pairs: Sequence[ImagePair], handles: Sequence[Any]) -> None:
        settings = self._config.rollout
        self._runtime.rollouts.submit(
            [
                RolloutTask(
                    pair=pair,
                    tokens=handle,
                    sampling=Sampling(
                        num_completions=settings.group_size,
                        temperature=settings.temperature,
                        top_p=settings.top_p,
                        max_tokens=settings.max_tokens,
                        seed=counter_seed(self._config.run.seed, "sampling", pair.pair_id),
                    ),
                )
                for pair, handle in zip(pairs, handles, strict=True)
            ]
        )

    def _collect(self, pairs: Sequence[ImagePair]) -> list[Outcome]:
        """The outcome of each pair; others that come in meanwhile are kept, or dropped when their step is over."""
        while missing := [pair.pair_id for pair in pairs if pair.pair_id not in self._arrived]:
            self._pause()
            results = self._runtime.rollouts.collect()
            if not results:
                raise TrainingError(f"{len(missing)} groups vanished from the pool", where=f"pair {missing[0]}")
            for result in results:
                name = result.pair_id
                if name in self._unwanted:
                    self._unwanted.remove(name)
                else:
                    self._arrived[name] = result
        return [self._arrived.pop(pair.pair_id) for pair in pairs]

    def _is_too_old(self, batch: MicroBatch, outcome: Outcome) -> bool:
        if isinstance(outcome, Quarantined):
            return False
        return batch.step - outcome.completions.encoder_version > self._config.rollout.max_staleness

    def _give_up(self, pairs: Sequence[ImagePair]) -> None:
        self._counts.surplus += len(pairs)
        for pair in pairs:
            if self._arrived.pop(pair.pair_id, None) is None:
                self._unwanted.add(pair.pair_id)

    def _bytes_ahead(self) -> int:
        return sum(ahead.encoded.num_bytes for ahead in self._ahead.values())


def _by_pair(pairs: Sequence[ImagePair], handles: Sequence[Any]) -> dict[str, Any]:
    return {pair.pair_id: handle for pair, handle in zip(pairs, handles, strict=True)}
