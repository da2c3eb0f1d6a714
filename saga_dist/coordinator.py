"""The coordinator: the spine of a run. ``train_step`` is one optimizer step, read top to bottom.

It moves handles and small records, decides, waits and counts; it never opens encoder tokens. Everything random comes
from counters, and groups are ordered by submission, never by arrival: serial and Ray runs take the same decisions.

Who waits for whom: the coordinator waits for ``learner`` calls and for ``pool.collect``; both end by a deadline of
their own, nobody waits for the coordinator. Hence no circle, hence no deadlock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_dist.checkpoint import CheckpointStore, verify
from saga_dist.config import RunConfig
from saga_dist.counters import counter_seed
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError, Interrupted
from saga_dist.evaluation import validation_recall
from saga_dist.observability import MetricsLog, Stopwatch
from saga_dist.pools import run_all
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.rollout_buffer import RolloutBuffer
from saga_dist.types import MicroBatch, ReplayTask, RolloutTask, Sampling, StepResult
from saga_dist.wire import write_recording

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Selection:
    """Model selection on validation classes: the best step so far."""

    step: int = -1
    recall_at_1: float = -1.0
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, validation Recall@1) of every evaluation."""

    def consider(self, step: int, recall_at_1: float) -> bool:
        """Notes an evaluation; True when it is the best so far (the earlier step wins a tie)."""
        self.history.append((step, recall_at_1))
        if recall_at_1 <= self.recall_at_1:
            return False
        self.step, self.recall_at_1 = step, recall_at_1
        return True


class Coordinator:
    """Trains one run: sampling, rollouts, replay, learner, checkpoints, model selection.

    Args:
        config: the whole configuration.
        runtime: learner and pools, serial or Ray.
        sampler: the class-balanced stream of micro-batches.
        run_dir: where metrics, recordings and checkpoints go.
        on_step: called after every optimizer step with its result.
        should_stop: asked between steps; True writes a checkpoint and raises ``Interrupted``.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        sampler: ClassBalancedSampler,
        run_dir: Path,
        *,
        on_step: Callable[[StepResult], None] = lambda result: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._runtime, self._sampler = config, runtime, sampler
        self._recordings = run_dir / "rollouts"
        self._checkpoints = CheckpointStore(run_dir / "checkpoints", keep=config.checkpoint.keep)
        self._metrics = MetricsLog(run_dir / "metrics.jsonl")
        self._on_step, self._should_stop = on_step, should_stop
        self.selection = Selection()

    # ------------------------------------------------------------------ the run

    def run(self) -> Selection:
        """Trains to the configured number of steps, resuming from the newest checkpoint, and returns the selection.

        Raises:
            Interrupted: asked to stop; a checkpoint of the last finished step was written.
            CheckpointError: the newest checkpoint is damaged or belongs to another configuration.
        """
        self._resume()
        while self._runtime.learner.step < self._config.run.steps:
            result = self.train_step()
            self._metrics.write(result)
            self._on_step(result)
            self._validate_if_due(result.step)
            self._save_if_due(result.step)
            if self._should_stop():
                self._save(result.step)
                raise Interrupted(f"stopped after step {result.step}", fix="the same command resumes")
        return self.selection

    def restore_selected(self) -> None:
        """Puts the weights of the selected step back into the learner."""
        if self.selection.step >= 0 and self.selection.step != self._runtime.learner.step:
            self._runtime.learner.load(verify(self._checkpoints.path(self.selection.step)).path)

    # ------------------------------------------------------------------ one step

    def train_step(self) -> StepResult:
        """One optimizer step: encode, roll out until K groups contribute, replay, update.

        Source: SAGA Algorithm 1.
        """
        clock = Stopwatch()
        step = self._runtime.learner.step
        buffer = RolloutBuffer(self._config.rollout.contributing_groups)
        tokens: dict[str, Any] = {}
        for batch in self._micro_batches(step):
            with clock.phase("encode"):
                encoded = self._runtime.learner.encode(batch)
            tokens.update(zip((pair.pair_id for pair in batch.pairs), encoded.handles, strict=True))
            with clock.phase("rollout"):
                self._roll_out(batch, tokens, buffer)
            if buffer.full:
                break
        with clock.phase("replay"):
            gradients = self._replay(buffer, tokens)
        with clock.phase("update"):
            result = self._runtime.learner.finish_step([gradient.handle for gradient in gradients])
        self._record(step, buffer)
        return self._summarise(result, buffer, gradients, clock)

    def _micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """The micro-batches a step may use: one without rollouts, else as many as dynamic sampling is allowed."""
        rollouts = self._config.objective.needs_rollouts
        num_pairs = self._config.rollout.pairs_per_batch if rollouts else 0
        for index in range(self._config.rollout.max_micro_batches if rollouts else 1):
            yield self._sampler.micro_batch(step, index, num_pairs)

    def _roll_out(self, batch: MicroBatch, tokens: dict[str, Any], buffer: RolloutBuffer) -> None:
        """Generates and scores a group for every pair of the micro-batch, and fills the buffer."""
        settings = self._config.rollout
        tasks = [
            RolloutTask(
                pair=pair,
                tokens=tokens[pair.pair_id],
                sampling=Sampling(
                    num_completions=settings.group_size,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_tokens,
                    seed=counter_seed(self._config.run.seed, "sampling", pair.pair_id),
                ),
            )
            for pair in batch.pairs
        ]
        groups = {group.pair.pair_id: group for group in run_all(self._runtime.rollouts, tasks)}
        for pair in batch.pairs:  # by submission, not by arrival
            buffer.add(groups[pair.pair_id])

    def _replay(self, buffer: RolloutBuffer, tokens: dict[str, Any]) -> list[GradientHandle]:
        """Differentiates the contributing groups; the denominator |T| is known before any backward."""
        groups = buffer.selected()
        tasks = [
            ReplayTask(
                group=group,
                tokens=tokens[group.pair.pair_id],
                num_tokens_total=buffer.num_tokens,
                want_attention=self._config.objective.lambda_kl > 0,
            )
            for group in groups
        ]
        gradients = {gradient.pair_id: gradient for gradient in run_all(self._runtime.replays, tasks)}
        return [gradients[group.pair.pair_id] for group in groups]

    def _record(self, step: int, buffer: RolloutBuffer) -> None:
        if self._config.rollout.record and buffer.groups:
            self._recordings.mkdir(exist_ok=True)
            write_recording(self._recordings / f"step_{step:06d}.arrow", buffer.groups)

    def _summarise(
        self, result: StepResult, buffer: RolloutBuffer, gradients: Sequence[GradientHandle], clock: Stopwatch
    ) -> StepResult:
        metrics = {**result.metrics, **buffer.metrics()}
        for stage, pool in (("rollout_pool", self._runtime.rollouts), ("replay_pool", self._runtime.replays)):
            metrics |= {f"{stage}/{name}": value for name, value in pool.metrics().items()}
        if gradients:
            metrics["replay/log_prob_gap_mean"] = sum(gradient.log_prob_gap for gradient in gradients) / len(gradients)
            metrics["replay/tokens"] = float(buffer.num_tokens)
        if buffer.groups:
            num_tokens = sum(group.num_tokens for group in buffer.groups)
            metrics["rollout/tokens_per_s"] = num_tokens / clock.seconds["rollout"]
        metrics |= {f"step/{phase}_s": seconds for phase, seconds in clock.seconds.items()}
        metrics["step/wall_s"] = sum(clock.seconds.values())
        return StepResult(step=result.step, metrics=metrics)

    # ------------------------------------------------------------------ checkpoints and model selection

    def _validate_if_due(self, step: int) -> None:
        due = step % self._config.evaluation.every_steps == 0 or step == self._config.run.steps
        if not due or not len(self._runtime.learner.labels("val")):
            return
        recall = validation_recall(self._runtime.learner)
        best = self.selection.consider(step, recall)
        self._metrics.write(StepResult(step=step, metrics={"validation/recall_at_1": recall}))
        if best:
            self._save(step)

    def _save_if_due(self, step: int) -> None:
        if step % self._config.checkpoint.every_steps == 0 or step == self._config.run.steps:
            self._save(step)

    def _save(self, step: int) -> None:
        if self._checkpoints.has(step):
            return
        selection = {
            "step": self.selection.step,
            "recall_at_1": self.selection.recall_at_1,
            "history": self.selection.history,
        }
        self._checkpoints.write(
            step,
            self._runtime.learner.save,
            extra={
                "config_digest": self._config.digest(),
                "split_hash": self._runtime.learner.split_hash(),
                "selection": selection,
            },
            best=self.selection.step,
        )

    def _resume(self) -> None:
        newest = self._checkpoints.newest()
        if newest is None:
            self._metrics.truncate(after_step=0)
            return
        if newest.extra["config_digest"] != self._config.digest():
            raise CheckpointError(
                "it belongs to another configuration", where=str(newest.path), fix="choose a new --run-dir"
            )
        if newest.extra["split_hash"] != self._runtime.learner.split_hash():
            raise CheckpointError(
                "the data set has changed since this checkpoint",
                where=str(newest.path),
                fix="restore the images and class lists, or choose a new --run-dir",
            )
        self._runtime.learner.load(newest.path)
        saved = newest.extra["selection"]
        self.selection = Selection(saved["step"], saved["recall_at_1"], [tuple(item) for item in saved["history"]])
        self._metrics.truncate(after_step=newest.step)
        log.info("resumed from %s", newest.path)
