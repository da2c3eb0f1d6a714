"""The rollout source with workers: it may start the rollouts of a micro-batch before the micro-batch has its turn.

A step uses micro-batches until enough groups contribute. With ``rollout.early_start`` the rollouts of those that it
will likely use are submitted together with the first one, behind it, so workers do not wait between micro-batches:

    step s      encode(0) ──► pool   encode_no_grad(1), encode_no_grad(2) ──► pool   groups of 0, encode(1), groups of 1

The tokens are those of the step's own encoder in either case, and a step consumes its micro-batches in order, so the
result is the same to the bit. Rollouts that are not consumed are cancelled.

With ``rollout.max_staleness`` = S > 0, the batches of the next S steps are encoded with the present encoder, and their
rollouts run while the learner works on the present step. Batches, pairs and sampling seeds come from counters, so
prefetching changes the encoder version that a group is sampled with, and nothing else.

    step s      encode_no_grad(s + S) ──► pool ─────────── (workers busy) ───────────► groups, consumed at step s + S
                encode(s), groups of s (submitted at step s - S), replay, update

A step consumes only its own groups, in order of submission. Staleness is checked at consumption: a group that is too
old is generated again from the present tokens. Prefetching is limited to S steps.

Tokens of rollouts that started early, for whichever reason, are limited to ``rollout.ahead_budget_mb``.

The source waits only for ``pool.collect``, which always ends; no other component waits for the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import TrainingError
from saga_dist.protocols import EncodedBatch, Runtime
from saga_dist.training.contribution_rate import ContributionRate
from saga_dist.training.source_protocol import Outcome
from saga_dist.types import ImagePair, MicroBatch, RolloutTask, Sampling, ScoredGroup
from saga_dist.utils.pair_ids import random_key
from saga_dist.utils.rng import counter_seed


@dataclass(slots=True)
class _Started:
    """A micro-batch whose rollouts were submitted and whose groups were not consumed."""

    batch: MicroBatch
    encoded: EncodedBatch
    during: int
    """Step that was open when the batch was encoded, which is earlier than its own if it was prefetched."""


@dataclass(slots=True)
class _Counts:
    """Counts of one step, for its metrics."""

    ages: list[int] = field(default_factory=list)
    """Staleness of each consumed group, in encoder versions."""
    too_old: int = 0
    """Groups that were generated again because they exceeded the largest staleness."""
    early: int = 0
    """Pairs of the open step whose rollouts started before their micro-batch had its turn."""
    cancelled: int = 0
    """Pairs whose rollouts were started and whose step ended without them."""
    held_back: int = 0
    """Times that the memory budget stopped prefetching or early starts."""


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
        self._ahead: dict[tuple[int, int], _Started] = {}
        """(step, index of the micro-batch) to the started batch."""
        self._finished: dict[str, Outcome] = {}
        """Pair id to an outcome that has not been consumed."""
        self._behaviour: dict[str, Any] = {}
        """Pair id to the handle of the tokens that a stale group of the open step was sampled from."""
        self._batches_per_step = 1
        """Micro-batches to prefetch for each step: as many as the last step used."""
        self._rate = ContributionRate()
        self._contributing = 0
        """Contributing groups of the open step so far."""
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
                if not self._start_ahead(later, index, during=step):
                    return

    def start(self, batch: MicroBatch, encoded: EncodedBatch) -> None:
        """Submits the rollouts of a micro-batch of the open step, unless they were started already.

        In a synchronous run the further micro-batches that the step will likely use are encoded and submitted behind
        it, so that workers have work until the step has enough contributing groups. Only a pool that works in the
        background gains from it.

        Args:
            batch: a micro-batch of the open step.
            encoded: tokens of its pairs at the present encoder version.
        """
        if batch.index == 0:
            self._contributing = 0
        if (batch.step, batch.index) not in self._ahead:
            self._add_started(_Started(batch, encoded, batch.step))
        if self._starts_early:
            self._start_likely_batches(batch)

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns the outcome of every pair of a started micro-batch of the open step; waits for rollouts in progress.

        Args:
            batch: a micro-batch of the open step.
            encoded: tokens of its pairs at the present encoder version, used for groups that are too old.
        """
        started = self._ahead.pop((batch.step, batch.index))
        if started.during < batch.step:
            self._behaviour.update(_by_pair(batch.pairs, started.encoded.handles))
        outcomes = self._collect(batch.pairs)
        if batch.step - started.during > self._config.rollout.max_staleness:
            outcomes = self._generate_again(batch, encoded, outcomes)
        groups = [outcome for outcome in outcomes if isinstance(outcome, ScoredGroup)]
        self._rate.add(groups)
        self._contributing += sum(group.contributes for group in groups)
        self._counts.ages += [batch.step - group.completions.encoder_version for group in groups]
        return outcomes

    def cancel_rest(self, step: int) -> list[str]:
        """Cancels the rollouts of a step that were started and not consumed; returns the ids of their pairs.

        The pool drops them, whether they wait, run or are finished.
        """
        rest = [self._ahead.pop(key) for key in sorted(self._ahead) if key[0] == step]
        pair_ids = [pair.pair_id for started in rest for pair in started.batch.pairs]
        if pair_ids:
            self._runtime.rollouts.cancel(pair_ids)
        for pair_id in pair_ids:
            self._finished.pop(pair_id, None)
        self._counts.cancelled += len(pair_ids)
        return pair_ids

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns the handle of the older tokens that a group of the open step was sampled from, and its truncation.

        For a group that was sampled with the present encoder version, there are no older tokens, and the truncation is
        ``rollout.mismatch_truncation``, or None when that is off.
        """
        if group.completions.encoder_version == step:
            return None, self._config.rollout.mismatch_truncation or None
        return self._behaviour[group.pair_id], self._config.rollout.importance_truncation

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Releases the state of the finished step; returns its metrics, those of staleness only if it is allowed."""
        self._behaviour.clear()
        self._batches_per_step = max(1, num_batches)
        counts, self._counts = self._counts, _Counts()
        metrics = {
            "rollout/early_groups": float(counts.early),
            "rollout/cancelled_groups": float(counts.cancelled),
        }
        if not self._config.rollout.max_staleness:
            return metrics
        metrics |= {
            "staleness/versions_mean": sum(counts.ages) / max(1, len(counts.ages)),
            "staleness/too_old_groups": float(counts.too_old),
            "staleness/surplus_groups": float(counts.cancelled),
            "staleness/held_back": float(counts.held_back),
            "staleness/ahead_bytes": float(self._bytes_ahead()),
        }
        return metrics | {
            f"staleness/groups_at_{age}": float(counts.ages.count(age))
            for age in range(self._config.rollout.max_staleness + 1)
        }

    def forget(self) -> None:
        """Drops all rollouts in progress and all results."""
        self._runtime.rollouts.forget()
        for store in (self._ahead, self._finished, self._behaviour):
            store.clear()

    @property
    def _starts_early(self) -> bool:
        settings = self._config.rollout
        return settings.early_start and not settings.max_staleness and self._runtime.rollouts.runs_in_background

    def _start_likely_batches(self, batch: MicroBatch) -> None:
        """Starts the micro-batches after ``batch`` that are likely needed to fill the open step."""
        settings = self._config.rollout
        likely = self._rate.likely_batches(
            settings.contributing_groups - self._contributing,
            pairs_per_batch=settings.pairs_per_batch,
            most=settings.max_micro_batches - batch.index,
        )
        for index in range(batch.index + 1, batch.index + likely):
            if (batch.step, index) in self._ahead:
                continue
            if not self._start_ahead(batch.step, index, during=batch.step):
                return
            self._counts.early += settings.pairs_per_batch

    def _start_ahead(self, step: int, index: int, *, during: int) -> bool:
        """Encodes a micro-batch and submits its rollouts, unless that was done; returns False without memory for it.

        Args:
            step: step of the micro-batch.
            index: its number within the step.
            during: the open step, whose encoder is used.
        """
        if (step, index) in self._ahead:
            return True
        if self._bytes_ahead() >= self._config.rollout.ahead_budget_mb << 20:
            self._counts.held_back += 1
            return False
        batch = self._sampler.micro_batch(step, index, self._config.rollout.pairs_per_batch)
        self._add_started(_Started(batch, self._runtime.learner.encode_no_grad(batch), during))
        return True

    def _add_started(self, started: _Started) -> None:
        self._ahead[started.batch.step, started.batch.index] = started
        self._submit(started.batch.pairs, started.encoded.handles)

    def _generate_again(self, batch: MicroBatch, encoded: EncodedBatch, outcomes: list[Outcome]) -> list[Outcome]:
        """Returns outcomes whose groups, which are too old, are replaced by groups of the present tokens."""
        old = [pair for pair, outcome in zip(batch.pairs, outcomes, strict=True) if isinstance(outcome, ScoredGroup)]
        self._counts.too_old += len(old)
        present = _by_pair(batch.pairs, encoded.handles)
        for pair in old:
            self._behaviour.pop(pair.pair_id, None)
        self._submit(old, [present[pair.pair_id] for pair in old])
        renewed = dict(zip(old, self._collect(old), strict=True))
        return [renewed.get(pair, outcome) for pair, outcome in zip(batch.pairs, outcomes, strict=True)]

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
        """Returns the outcome of each pair; results of other pairs that finish meanwhile are kept."""
        while missing := [pair.pair_id for pair in pairs if pair.pair_id not in self._finished]:
            self._before_wait()
            results = self._runtime.rollouts.collect()
            if not results:
                raise TrainingError(f"{len(missing)} groups vanished from the pool", where=f"pair {missing[0]}")
            self._finished.update((result.pair_id, result) for result in results)
        return [self._finished.pop(pair.pair_id) for pair in pairs]

    def _bytes_ahead(self) -> int:
        return sum(started.encoded.num_bytes for started in self._ahead.values())


def _by_pair(pairs: Sequence[ImagePair], handles: Sequence[Any]) -> dict[str, Any]:
    return {pair.pair_id: handle for pair, handle in zip(pairs, handles, strict=True)}
