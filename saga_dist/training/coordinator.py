"""The coordinator: the training loop of a run. ``Coordinator.train_step`` is one optimizer step.

The coordinator passes handles and small records between learner and pools; it never opens encoder tokens. All random
choices come from counters, and groups are ordered by submission, not by arrival. So a serial run and a Ray run make the
same decisions.

No deadlock is possible: the coordinator waits only for calls of the learner and for ``pool.collect``, each of which
ends at its own deadline, and no other component waits for the coordinator.
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
from saga_dist.errors import Interrupted, LearnerLost, TrainingError
from saga_dist.metrics.group_words import GroupSample, shown_group
from saga_dist.metrics.log import MetricsLog, Stopwatch
from saga_dist.metrics.sinks import MetricSink
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.training.contribution_monitor import ContributionMonitor
from saga_dist.training.engine_check import check_engine
from saga_dist.training.evaluation import validation_recall
from saga_dist.training.expected_batches import announce_next
from saga_dist.training.identity import IDENTITY_KEY, identity_of, refuse_other_identity
from saga_dist.training.pair_ledger import LEDGER_NAME, PairLedger
from saga_dist.training.recorded_source import RecordedRolloutSource
from saga_dist.training.resume_check import check_resumable
from saga_dist.training.rollout_buffer import RolloutBuffer, with_replay
from saga_dist.training.rollout_source import WorkerRolloutSource
from saga_dist.training.share_monitor import ShareMonitor
from saga_dist.training.source_protocol import RolloutSource
from saga_dist.training.step_metrics import pool_metrics, step_metrics, verdict_form_metrics, verdict_key
from saga_dist.training.verdict_step import VerdictStep
from saga_dist.types import MicroBatch, Quarantined, ReplayTask, ScoredGroup, StepResult
from saga_dist.utils.output_files import make_folder
from saga_dist.wire import RunIdentity, recording_path, write_recording
from saga_dist.workers.serial_pool import run_tasks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepState:
    """State of the optimizer step in progress."""

    number: int
    """Optimizer steps done before this one; also the encoder version."""
    buffer: RolloutBuffer
    """Scored groups of the step."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """Pair id to the handle of the pair's tokens at this encoder version."""
    quarantined: list[Quarantined] = field(default_factory=list)
    """Pairs without a usable group: workers failed on them, or the recording does not have them."""
    num_batches: int = 0
    """Micro-batches encoded so far."""
    cancelled: list[str] = field(default_factory=list)
    """Ids of pairs of further micro-batches whose rollouts were started and cancelled when the step was filled."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    """Seconds spent in each phase."""


@dataclass(slots=True)
class ModelSelection:
    """Model selection on validation classes: the best step so far."""

    step: int = -1
    """Optimizer steps done at the best evaluation; -1 before the first evaluation."""
    recall_at_1: float = -1.0
    """Validation Recall@1 at that step, in [0, 1]; -1 before the first evaluation."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, validation Recall@1) of every evaluation."""

    def consider(self, step: int, recall_at_1: float) -> bool:
        """Adds an evaluation; returns True when it is the best so far (in a tie the earlier step stays selected)."""
        self.history.append((step, recall_at_1))
        if recall_at_1 <= self.recall_at_1:
            return False
        self.step, self.recall_at_1 = step, recall_at_1
        return True


class Coordinator:
    """Trains one run: sampling, rollouts, replay, update, checkpoints and model selection.

    Args:
        config: the whole configuration.
        runtime: learner and worker pools, serial or Ray.
        sampler: the class-balanced stream of micro-batches.
        run_dir: existing directory for metrics, recordings and checkpoints.
        on_start: called before the first optimizer step, after the start-up check; may raise an exception.
        on_step: called after every optimizer step with its result.
        should_stop: called between steps and while the step waits for rollouts; when it returns True, the coordinator
            saves a checkpoint of the last finished step and raises ``Interrupted``.
        sinks: receive the metrics in addition to ``metrics.jsonl``; the caller closes them.
        identity: weights, data and code of the run; None: those of the runtime, whose learner is then new.
    """

    def __init__(
        self,
        config: RunConfig,
        runtime: Runtime,
        sampler: ClassBalancedSampler,
        run_dir: Path,
        *,
        on_start: Callable[[], None] = lambda: None,
        on_step: Callable[[StepResult], None] = lambda result: None,
        should_stop: Callable[[], bool] = lambda: False,
        sinks: Sequence[MetricSink] = (),
        identity: RunIdentity | None = None,
    ) -> None:
        self._identity = identity or identity_of(runtime)
        self._config, self._runtime, self._sampler = config, runtime, sampler
        self._recordings = run_dir / "rollouts"
        keep = config.checkpoint.keep
        mirror = open_mirror(config.checkpoint.mirror, run=config.digest()[:16], keep=keep)
        self._checkpoints = CheckpointStore(run_dir / "checkpoints", keep, mirror)
        self._metrics = MetricsLog(run_dir / "metrics.jsonl", sinks)
        self._ledger = PairLedger(run_dir / LEDGER_NAME)
        self._monitors = (ShareMonitor(config.objective), ContributionMonitor(config))
        self._on_start, self._on_step, self._should_stop = on_start, on_step, should_stop
        self._source = self._build_source(config.rollout.recording)
        self._verdict_key = verdict_key(config) if config.objective.needs_rollouts else ""
        self._verdict_step = VerdictStep(config, runtime, sampler, self._ledger)
        self._num_losses = 0
        """Number of learners lost since the last checkpoint."""
        self.selection = ModelSelection()

    def _build_source(self, recording: str) -> RolloutSource:
        if recording and self._config.objective.needs_rollouts:
            return RecordedRolloutSource(self._config, Path(recording), self._identity)
        return WorkerRolloutSource(self._config, self._runtime, self._sampler, before_wait=self._obey_requests)

    # ------------------------------------------------------------------ the run

    def run(self) -> ModelSelection:
        """Trains from the newest valid checkpoint to the configured number of steps; returns the model selection.

        Raises:
            Interrupted: ``should_stop`` returned True; a checkpoint of the last finished step was saved.
            CheckpointError: no checkpoint is valid, the newest belongs to another configuration, data set or model, or
                the last save failed (an earlier failure is only a warning while an older checkpoint exists).
            TrainingError: log-probabilities of engine and replay differ too much, or the learner was lost too often.
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
        """Takes optimizer steps until the configured number is reached."""
        generates = self._config.objective.needs_rollouts and not self._config.rollout.recording
        if generates and self._runtime.learner.step < self._config.run.steps:
            check_engine(self._config, self._runtime, self._sampler)
        self._on_start()
        while self._runtime.learner.step < self._config.run.steps:
            result = self.train_step()
            self._metrics.write(result)
            for monitor in self._monitors:
                monitor.observe(result.metrics)
            self._on_step(result)
            self._validate_if_due(result.step)
            self._save_if_due(result.step)
            self._obey_requests()

    def _obey_requests(self) -> None:
        """Saves a checkpoint of the last finished step if the runtime asks for one, or before the run is stopped.

        This is correct also within a step, because its gradients are not part of the saved state.

        Raises:
            Interrupted: ``should_stop`` returned True.
        """
        if self._runtime.take_checkpoint_request():
            self._save(self._runtime.learner.step, required=False)
        if self._should_stop():
            step = self._runtime.learner.step
            self._save(step)
            raise Interrupted(f"stopped after step {step}", fix="the same command resumes")

    def _replace_learner(self, loss: LearnerLost) -> None:
        """Starts a new learner in place of a lost one.

        Raises:
            TrainingError: more than ``runtime.max_learner_restarts`` learners were lost since the last checkpoint.
        """
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
        """Loads the weights of the selected step into the learner."""
        if self.selection.step >= 0 and self.selection.step != self._runtime.learner.step:
            self._runtime.learner.load(self._checkpoints.verified(self.selection.step).path)

    # ------------------------------------------------------------------ one step

    def train_step(self) -> StepResult:
        """Takes one optimizer step: encode, generate rollouts until K groups contribute, replay, update.

        With ``objective.signal = "verdict"`` there are no rollouts, and ``VerdictStep`` takes the step.

        Source: SAGA Algorithm 1.
        """
        if self._config.objective.needs_verdicts:
            return self._verdict_step.take()
        step = StepState(self._runtime.learner.step, RolloutBuffer(self._config.rollout.contributing_groups))
        with step.clock.phase("encode_ahead"):
            self._prefetch(step)
        for batch in self._micro_batches(step):
            self._collect_groups(step, batch)
            if step.buffer.full:
                break
        step.cancelled = self._source.cancel_rest(step.number)
        with step.clock.phase("replay"):
            gradients = self._replay(step)
        with step.clock.phase("update"):
            result = self._runtime.learner.finish_step([gradient.handle for gradient in gradients])
        self._record(step, gradients)
        return self._summarise(step, result, gradients)

    def _prefetch(self, step: StepState) -> None:
        if self._config.objective.needs_rollouts:
            self._source.prefetch(step.number)

    def _micro_batches(self, step: StepState) -> Iterator[MicroBatch]:
        """Yields the micro-batches that a step may use: one without rollouts, else ``rollout.max_micro_batches``."""
        rollouts = self._config.objective.needs_rollouts
        num_pairs = self._config.rollout.pairs_per_batch if rollouts else 0
        for index in range(self._config.rollout.max_micro_batches if rollouts else 1):
            yield self._sampler.micro_batch(step.number, index, num_pairs)

    def _collect_groups(self, step: StepState, batch: MicroBatch) -> None:
        """Encodes a micro-batch and adds the outcome of every pair to the buffer or to the quarantined pairs."""
        with step.clock.phase("encode"):
            encoded = self._runtime.learner.encode(batch)
        step.num_batches += 1
        step.tokens.update(zip((pair.pair_id for pair in batch.pairs), encoded.handles, strict=True))
        with step.clock.phase("encode_ahead"):
            if batch.pairs:
                self._source.start(batch, encoded)
            announce_next(self._config, self._runtime.learner, self._sampler, batch)
        if not batch.pairs:
            return
        with step.clock.phase("rollout"):
            for outcome in self._source.get_groups(batch, encoded):
                if isinstance(outcome, Quarantined):
                    step.quarantined.append(outcome)
                else:
                    step.buffer.add(outcome)

    def _replay(self, step: StepState) -> list[GradientHandle]:
        """Differentiates the contributing groups; the denominator |T| is fixed before any backward pass.

        A group on which replay workers fail is quarantined. Since it was part of |T|, the other selected groups, which
        may then include one more, are replayed again without it.
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
        """Writes the recording of the step (groups with replay log-probabilities) and its row in the pair ledger."""
        if (sample := self._group_sample(step)) is not None:
            self._metrics.write_group(sample)
        if self._config.rollout.record and step.buffer.groups:
            make_folder(self._recordings)
            groups = with_replay(step.buffer.groups, gradients)
            write_recording(recording_path(self._recordings, step.number + 1), groups, self._identity)
        if self._config.objective.needs_rollouts:
            self._ledger.append(
                step.number + 1, step.num_batches, step.buffer.outcomes(), step.quarantined, step.cancelled
            )

    def _group_sample(self, step: StepState) -> GroupSample | None:
        """Returns the group of a step that the sinks receive with its images; None where none is due."""
        every, number = self._config.logging.group_every_steps, step.number + 1
        group = shown_group(step.buffer.groups)
        if group is None or not every or not self._metrics.has_sinks or (number != 1 and number % every):
            return None
        image_a, image_b = self._runtime.learner.training_images([group.pair.image_a, group.pair.image_b])
        return GroupSample(number, group, (image_a, image_b))

    def _summarise(self, step: StepState, result: StepResult, gradients: list[GradientHandle]) -> StepResult:
        metrics = {**result.metrics, **pool_metrics(self._runtime)}
        metrics |= step_metrics(step.buffer, gradients, step.clock, replay_is_remote=self._config.replay.workers > 0)
        if self._config.objective.needs_rollouts:
            metrics["rollout/quarantined"] = float(len(step.quarantined))
            metrics |= verdict_form_metrics(step.buffer.groups, self._verdict_key)
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
            self.selection.step, self.selection.recall_at_1 = before  # weights that were not saved cannot be selected

    def _save_if_due(self, step: int) -> None:
        if step % self._config.checkpoint.every_steps == 0 or step == self._config.run.steps:
            self._save(step, required=step == self._config.run.steps)

    def _save(self, step: int, *, required: bool = True) -> bool:
        """Saves a checkpoint of the step; returns False when that failed and is not ``required``.

        Failures of the store and of its mirror are written to the metrics.

        Raises:
            CheckpointError: the checkpoint cannot be written, and it is required or there is no earlier valid one.
        """
        if self._checkpoints.has(step):
            return True
        selection = {
            "step": self.selection.step,
            "recall_at_1": self.selection.recall_at_1,
            "history": self.selection.history,
        }
        extra = {
            "config_digest": self._config.digest(),
            "config": self._config.deciding(),
            "split_hash": self._identity.split,
            IDENTITY_KEY: self._identity.to_json(),
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
        check_resumable(newest, self._config)
        refuse_other_identity(self._identity, newest.extra, where=newest.path)
        self._runtime.learner.load(newest.path)
        saved = newest.extra["selection"]
        self.selection = ModelSelection(saved["step"], saved["recall_at_1"], [tuple(item) for item in saved["history"]])
        self._metrics.truncate(after_step=newest.step)
        self._ledger.truncate(after_step=newest.step)
        # A crash may have prevented this after the checkpoint was written.
        self._checkpoints.finalize(newest.step, best=self.selection.step)
        log.info("resumed from %s", newest.path)
