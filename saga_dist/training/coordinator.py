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

from saga_dist.checkpoint import CheckpointStore, open_mirror
from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError, Interrupted, LearnerLost, TrainingError
from saga_dist.metrics.log import MetricsLog, Stopwatch
from saga_dist.metrics.sinks import MetricSink
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.training.engine_check import check_engine
from saga_dist.training.evaluation import validation_recall
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.training.recorded_source import RecordedRolloutSource
from saga_dist.training.rollout_buffer import RolloutBuffer, with_replay
from saga_dist.training.rollout_source import RolloutSource, WorkerRolloutSource
from saga_dist.training.step_metrics import step_metrics
from saga_dist.types import MicroBatch, Quarantined, ReplayTask, ScoredGroup, StepResult
from saga_dist.wire import write_recording
from saga_dist.workers.serial_pool import run_tasks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepState:
    """What a step has gathered so far."""

    number: int
    """Optimizer steps done before it; also the encoder version."""
    buffer: RolloutBuffer
    tokens: dict[str, Any] = field(default_factory=dict)
    """Handle of every pair's tokens at this version."""
    quarantined: list[Quarantined] = field(default_factory=list)
    num_batches: int = 0
    clock: Stopwatch = field(default_factory=Stopwatch)


@dataclass(slots=True)
class ModelSelection:
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
        should_stop: asked between steps and whenever rollouts come in; True writes a checkpoint of the last finished
            step and raises ``Interrupted``.
        sinks: told the metrics besides ``metrics.jsonl``; the caller closes them.
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
        sinks: Sequence[MetricSink] = (),
    ) -> None:
        self._config, self._runtime, self._sampler = config, runtime, sampler
        self._recordings = run_dir / "rollouts"
        keep = config.checkpoint.keep
        mirror = open_mirror(config.checkpoint.mirror, run=config.digest()[:16], keep=keep)
        self._checkpoints = CheckpointStore(run_dir / "checkpoints", keep, mirror)
        self._metrics = MetricsLog(run_dir / "metrics.jsonl", sinks)
        self._ledger = PairLedger(run_dir / "ledger.jsonl")
        self._on_step, self._should_stop = on_step, should_stop
        self._source = self._groups_from(config.rollout.recording)
        self._num_losses = 0
        """Learners lost since the last checkpoint."""
        self.selection = ModelSelection()

    def _groups_from(self, recording: str) -> RolloutSource:
        if recording and self._config.objective.needs_rollouts:
            return RecordedRolloutSource(self._config, Path(recording))
        return WorkerRolloutSource(self._config, self._runtime, self._sampler, pause=self._stop_if_asked)

    # ------------------------------------------------------------------ the run

    def run(self) -> ModelSelection:
        """Trains to the configured number of steps, from the newest valid checkpoint on, and returns the selection.

        Raises:
            Interrupted: asked to stop; a checkpoint of the last finished step was written.
            CheckpointError: no checkpoint is valid, or the newest belongs to another configuration; or the last save
                failed (one before it only costs a warning while an older checkpoint is there).
            TrainingError: engine and replay do not agree, or the learner was lost too often.
        """
        lost: LearnerLost | None = None
        while True:
            try:
                if lost is not None:
                    self._replace_learner(lost)
                    lost = None
                self._resume()
                self._train()
                return self.selection
            except LearnerLost as error:
                lost = error

    def _train(self) -> None:
        """Steps until the run is done."""
        generates = self._config.objective.needs_rollouts and not self._config.rollout.recording
        if generates and self._runtime.learner.step < self._config.run.steps:
            check_engine(self._config, self._runtime, self._sampler)
        while self._runtime.learner.step < self._config.run.steps:
            result = self.train_step()
            self._metrics.write(result)
            self._on_step(result)
            self._validate_if_due(result.step)
            self._save_if_due(result.step)
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            step = self._runtime.learner.step
            self._save(step)  # an open step leaves no trace: its gradients are not part of the state
            raise Interrupted(f"stopped after step {step}", fix="the same command resumes")

    def _replace_learner(self, loss: LearnerLost) -> None:
        """Puts a new learner in place of a lost one, unless that has been tried often enough."""
        self._num_losses += 1
        if self._num_losses > self._config.runtime.max_learner_restarts:
            raise TrainingError(
                f"the learner was lost {self._num_losses} times without a new checkpoint in between; {loss}",
                where="coordinator",
            ) from loss
        log.warning("%s; a new learner goes on from the last checkpoint", loss)
        self._source.forget()
        self._runtime.restart_learner()

    def restore_selected(self) -> None:
        """Puts the weights of the selected step back into the learner."""
        if self.selection.step >= 0 and self.selection.step != self._runtime.learner.step:
            self._runtime.learner.load(self._checkpoints.verified(self.selection.step).path)

    # ------------------------------------------------------------------ one step

    def train_step(self) -> StepResult:
        """One optimizer step: encode, roll out until K groups contribute, replay, update.

        Source: SAGA Algorithm 1.
        """
        step = StepState(self._runtime.learner.step, RolloutBuffer(self._config.rollout.contributing_groups))
        with step.clock.phase("encode_ahead"):
            self._run_ahead(step)
        for batch in self._micro_batches(step):
            self._roll_out(step, batch)
            if step.buffer.full:
                break
        with step.clock.phase("replay"):
            gradients = self._replay(step)
        with step.clock.phase("update"):
            result = self._runtime.learner.finish_step([gradient.handle for gradient in gradients])
        self._record(step, gradients)
        return self._summarise(step, result, gradients)

    def _run_ahead(self, step: StepState) -> None:
        if self._config.objective.needs_rollouts:
            self._source.prefetch(step.number)

    def _micro_batches(self, step: StepState) -> Iterator[MicroBatch]:
        """The micro-batches a step may use: one without rollouts, else as many as dynamic sampling is allowed."""
        rollouts = self._config.objective.needs_rollouts
        num_pairs = self._config.rollout.pairs_per_batch if rollouts else 0
        for index in range(self._config.rollout.max_micro_batches if rollouts else 1):
            yield self._sampler.micro_batch(step.number, index, num_pairs)

    def _roll_out(self, step: StepState, batch: MicroBatch) -> None:
        """Encodes a micro-batch and takes the group of every pair, or the reason why there is none."""
        with step.clock.phase("encode"):
            encoded = self._runtime.learner.encode(batch)
        step.num_batches += 1
        step.tokens.update(zip((pair.pair_id for pair in batch.pairs), encoded.handles, strict=True))
        if not batch.pairs:
            return
        with step.clock.phase("rollout"):
            for outcome in self._source.get_groups(batch, encoded):
                if isinstance(outcome, Quarantined):
                    step.quarantined.append(outcome)
                else:
                    step.buffer.add(outcome)

    def _replay(self, step: StepState) -> list[GradientHandle]:
        """Differentiates the contributing groups; the denominator |T| is known before any backward.

        A group that cannot be differentiated anywhere is set aside. Since it was part of |T|, the others, one more
        perhaps, are replayed again without it.
        """
        while True:
            groups, num_tokens = step.buffer.selected(), step.buffer.num_tokens
            tasks = [self._replay_task(step, group, num_tokens) for group in groups]
            outcomes = run_tasks(self._runtime.replays, tasks)
            failed = [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
            if not failed:
                gradients = {gradient.pair_id: gradient for gradient in outcomes}
                return [gradients[group.pair_id] for group in groups]
            step.quarantined += failed
            for one in failed:
                step.buffer.remove(one.pair_id)

    def _replay_task(self, step: StepState, group: ScoredGroup, num_tokens: int) -> ReplayTask:
        behaviour, truncate_at = self._source.off_policy(group, step.number)
        return ReplayTask(
            group=group,
            tokens=step.tokens[group.pair_id],
            num_tokens_total=num_tokens,
            want_attention=self._config.objective.lambda_kl > 0,
            behaviour=behaviour,
            truncate_at=truncate_at,
        )

    def _record(self, step: StepState, gradients: Sequence[GradientHandle]) -> None:
        """Writes the step's groups, what replay made of them, and what became of each pair."""
        if self._config.rollout.record and step.buffer.groups:
            self._recordings.mkdir(exist_ok=True)
            groups = with_replay(step.buffer.groups, gradients)
            write_recording(self._recordings / f"step_{step.number:06d}.arrow", groups)
        if self._config.objective.needs_rollouts:
            self._ledger.append(step.number + 1, step.num_batches, step.buffer, step.quarantined)

    def _summarise(self, step: StepState, result: StepResult, gradients: list[GradientHandle]) -> StepResult:
        metrics = dict(result.metrics)
        for stage, pool in (("rollout_pool", self._runtime.rollouts), ("replay_pool", self._runtime.replays)):
            metrics |= {f"{stage}/{name}": value for name, value in pool.metrics().items()}
        metrics |= step_metrics(step.buffer, gradients, step.clock, replay_is_remote=self._config.replay.workers > 0)
        if self._config.objective.needs_rollouts:
            metrics["rollout/quarantined"] = float(len(step.quarantined))
            metrics |= self._source.end_step(step.number, step.num_batches)
        return StepResult(step=result.step, metrics=metrics)

    # ------------------------------------------------------------------ checkpoints and model selection

    def _validate_if_due(self, step: int) -> None:
        due = step % self._config.evaluation.every_steps == 0 or step == self._config.run.steps
        if not due or not len(self._runtime.learner.labels("val")):
            return
        recall = validation_recall(self._runtime.learner)
        before = self.selection.step, self.selection.recall_at_1
        best = self.selection.consider(step, recall)
        self._metrics.write(StepResult(step=step, metrics={"validation/recall_at_1": recall}))
        if best and not self._save(step, required=step == self._config.run.steps):
            self.selection.step, self.selection.recall_at_1 = before  # weights that were not kept cannot be selected

    def _save_if_due(self, step: int) -> None:
        if step % self._config.checkpoint.every_steps == 0 or step == self._config.run.steps:
            self._save(step, required=step == self._config.run.steps)

    def _save(self, step: int, *, required: bool = True) -> bool:
        """Saves the step; False when that failed and is not ``required``. Trouble gets a row in the metrics."""
        if self._checkpoints.has(step):
            return True
        selection = {
            "step": self.selection.step,
            "recall_at_1": self.selection.recall_at_1,
            "history": self.selection.history,
        }
        extra = {
            "config_digest": self._config.digest(),
            "split_hash": self._runtime.learner.split_hash(),
            "selection": selection,
        }
        write = self._checkpoints.write if required else self._checkpoints.try_write
        saved = bool(write(step, self._runtime.learner.save, extra, best=self.selection.step))
        if trouble := self._checkpoints.metrics():
            self._metrics.write(StepResult(step=step, metrics=trouble))
        if saved:
            self._num_losses = 0
        return saved

    def _resume(self) -> None:
        newest = self._checkpoints.newest()
        self.selection = ModelSelection()
        if newest is None:
            self._metrics.truncate(after_step=0)
            self._ledger.truncate(after_step=0)
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
        self.selection = ModelSelection(saved["step"], saved["recall_at_1"], [tuple(item) for item in saved["history"]])
        self._metrics.truncate(after_step=newest.step)
        self._ledger.truncate(after_step=newest.step)
        self._checkpoints.finalize(newest.step, best=self.selection.step)  # a crash may have come before it
        log.info("resumed from %s", newest.path)
