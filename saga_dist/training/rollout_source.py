"""Rollout sources: provide the groups of a step, on demand and, if staleness is allowed, prefetched.

With ``rollout.max_staleness`` = S > 0, the batches of the next S steps are encoded with the present encoder, and their
rollouts run while the learner works on the present step. Batches, pairs and sampling seeds come from counters, so
prefetching changes the encoder version that a group is sampled with, and nothing else.

    step s      encode_no_grad(s + S) ──► pool ─────────── (workers busy) ───────────► groups, consumed at step s + S
                encode(s), groups of s (submitted at step s - S), replay, update

A step consumes only its own groups, in order of submission. Staleness is checked at consumption: a group that is too
old is generated again from the present tokens. Prefetching is limited to S steps and to ``rollout.ahead_budget_mb`` of
encoder tokens.

The source waits only for ``pool.collect``, which always ends; no other component waits for the source.
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
from saga_dist.utils.pair_ids import random_key
from saga_dist.utils.rng import counter_seed

Outcome = ScoredGroup | Quarantined
"""Outcome of the rollouts of a pair: its scored group, or the reason why there is none."""


class RolloutSource(Protocol):
    """Provides the groups of each step: from workers, or from a recording."""

    def prefetch(self, step: int) -> None:
        """Starts rollouts of this and later steps; does not wait for them."""

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns one outcome per pair of the batch, in the order of its pairs."""

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the behaviour tokens and the truncation of the importance weights of a group of the open step.

        The first value is the handle of the older tokens that the group was sampled from; None when these are the
        present tokens, or are not available. The second is the largest importance weight; None when the group is
        on-policy, so that every weight is 1.

        Args:
            group: a group of the open step.
            step: optimizer steps done before the open step.
        """

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Releases the state of a finished step; returns its metrics, named ``stage/quantity``.

        Args:
            step: optimizer steps done before the finished step.
            num_batches: micro-batches of the finished step.
        """

    def forget(self) -> None:
        """Drops all rollouts in progress, because the learner restarts from a checkpoint."""


@dataclass(slots=True)
class _Prefetched:
    """A micro-batch of a later step whose rollouts were submitted."""

    batch: MicroBatch
    encoded: EncodedBatch


@dataclass(slots=True)
class _Counts:
    """Counts of one step, for its metrics."""

    ages: list[int] = field(default_factory=list)
    """Staleness of each consumed group, in encoder versions."""
    too_old: int = 0
    """Groups that were generated again because they exceeded the largest staleness."""
    surplus: int = 0
    """Prefetched pairs whose step ended without them."""
    held_back: int = 0
    """Times that the memory budget stopped prefetching."""


class WorkerRolloutSource:
    """Implements ``RolloutSource`` with the runtime's rollout workers.

    Args:
        config: configuration of the run.
        runtime: learner, to encode prefetched batches, and rollout pool.
        sampler: the stream of micro-batches.
        before_wait: called before every wait for results; may raise an exception to leave the step.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        sampler: ClassBalancedSampler,
        *,
        before_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._runtime, self._sampler, self._before_wait = config, runtime, sampler, before_wait
        self._ahead: dict[tuple[int, int], _Prefetched] = {}
        """(step, index of the micro-batch) to the prefetched batch."""
        self._finished: dict[str, Outcome] = {}
        """Pair id to an outcome that has not been consumed."""
        self._cancelled: set[str] = set()
        """Ids of pairs that are in progress although their step has ended without them."""
        self._behaviour: dict[str, Any] = {}
        """Pair id to the handle of the tokens that a stale group of the open step was sampled from."""
        self._batches_per_step = 1
        """Micro-batches to prefetch for each step: as many as the last step used."""
        self._counts = _Counts()

    def prefetch(self, step: int) -> None:
        """Encodes the batches of this and the next S steps that are not prefetched yet, and submits their rollouts.

        For each step, as many batches are prefetched as the last step used; further ones are generated on demand.
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
        """Returns the outcome of every pair of a micro-batch of the open step; waits for rollouts in progress.

        Args:
            batch: a micro-batch of the open step.
            encoded: tokens of its pairs at the present encoder version, used for groups that were not prefetched or are
                too old.
        """
        prefetched = self._ahead.pop((batch.step, batch.index), None)
        if prefetched is None:
            self._submit(batch.pairs, encoded.handles)
        else:
            self._behaviour.update(_by_pair(batch.pairs, prefetched.encoded.handles))
        outcomes = self._collect(batch.pairs)
        old = [pair for pair, outcome in zip(batch.pairs, outcomes, strict=True) if self._is_too_old(batch, outcome)]
        if old:
            self._counts.too_old += len(old)
            present = _by_pair(batch.pairs, encoded.handles)
            for pair in old:
                self._behaviour.pop(pair.pair_id, None)
            self._submit(old, [present[pair.pair_id] for pair in old])
            renewed = dict(zip(old, self._collect(old), strict=True))
            outcomes = [renewed.get(pair, outcome) for pair, outcome in zip(batch.pairs, outcomes, strict=True)]
        groups = [outcome for outcome in outcomes if isinstance(outcome, ScoredGroup)]
        self._counts.ages += [batch.step - group.completions.encoder_version for group in groups]
        return outcomes

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the handle of the older tokens that a group of the open step was sampled from, and its truncation.

        For a group that was sampled with the present encoder version, there are no older tokens, and the truncation is
        ``rollout.mismatch_truncation``, or None when that is off.
        """
        if group.completions.encoder_version == step:
            return None, self._config.rollout.mismatch_truncation or None
        return self._behaviour[group.pair_id], self._config.rollout.importance_truncation

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Releases the state of the finished step; returns its staleness metrics, {} in a synchronous run.

        Prefetched pairs of the step that were not consumed are cancelled and counted as surplus.
        """
        self._behaviour.clear()
        for key in [key for key in self._ahead if key[0] == step]:
            self._cancel(self._ahead.pop(key).batch.pairs)
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
        """Drops all rollouts in progress and all results."""
        self._runtime.rollouts.forget()
        for store in (self._ahead, self._finished, self._cancelled, self._behaviour):
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
                        seed=counter_seed(self._config.run.seed, "sampling", random_key(pair.pair_id)),
                    ),
                )
                for pair, handle in zip(pairs, handles, strict=True)
            ]
        )

    def _collect(self, pairs: Sequence[ImagePair]) -> list[Outcome]:
        """Returns the outcome of each pair.

        Results of other pairs that finish meanwhile are kept, or dropped if their step has ended.
        """
        while missing := [pair.pair_id for pair in pairs if pair.pair_id not in self._finished]:
            self._before_wait()
            results = self._runtime.rollouts.collect()
            if not results:
                raise TrainingError(f"{len(missing)} groups vanished from the pool", where=f"pair {missing[0]}")
            for result in results:
                name = result.pair_id
                if name in self._cancelled:
                    self._cancelled.remove(name)
                else:
                    self._finished[name] = result
        return [self._finished.pop(pair.pair_id) for pair in pairs]

    def _is_too_old(self, batch: MicroBatch, outcome: Outcome) -> bool:
        if isinstance(outcome, Quarantined):
            return False
        return batch.step - outcome.completions.encoder_version > self._config.rollout.max_staleness

    def _cancel(self, pairs: Sequence[ImagePair]) -> None:
        self._counts.surplus += len(pairs)
        for pair in pairs:
            if self._finished.pop(pair.pair_id, None) is None:
                self._cancelled.add(pair.pair_id)

    def _bytes_ahead(self) -> int:
        return sum(prefetched.encoded.num_bytes for prefetched in self._ahead.values())


def _by_pair(pairs: Sequence[ImagePair], handles: Sequence[Any]) -> dict[str, Any]:
    return {pair.pair_id: handle for pair, handle in zip(pairs, handles, strict=True)}
