"""Rollouts without training: records the frozen MLLM's completions for the tokens of one encoder.

The learner only encodes and is never updated, so every step has the same encoder version: 0, or that of the newest
checkpoint of a run. Steps that are recorded already are skipped, so the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.data.sampling import training_sampler
from saga_dist.errors import ConfigError, Interrupted
from saga_dist.metrics.log import MetricsLog
from saga_dist.protocols import Runtime
from saga_dist.training.engine_check import check_engine
from saga_dist.training.identity import identity_of, refuse_other_recording
from saga_dist.training.rollout_buffer import RolloutBuffer
from saga_dist.training.rollout_source import WorkerRolloutSource
from saga_dist.training.step_metrics import verdict_form_metrics, verdict_key
from saga_dist.types import Quarantined, StepResult
from saga_dist.utils.output_files import make_folder
from saga_dist.wire import open_recording, recording_path, recordings, write_recording


def record_rollouts(
    config: RunConfig,
    runtime: Runtime,
    run_dir: Path,
    *,
    on_start: Callable[[], None] = lambda: None,
    on_step: Callable[[StepResult], None] = lambda result: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Records the rollouts of ``run.steps`` steps in ``rollouts/``; returns the number of newly recorded steps.

    A step uses micro-batches until K groups contribute, as in training.

    Args:
        config: configuration of the run.
        runtime: learner and rollout pool.
        run_dir: existing directory for recordings and metrics.
        on_start: called before the first step, after the start-up check; may raise an exception.
        on_step: called after every step with its metrics.
        should_stop: called after every step; True ends the recording.

    Raises:
        ConfigError: the configuration needs no rollouts.
        CheckpointError: steps were recorded with other weights or data.
        Interrupted: ``should_stop`` returned True; the finished steps are recorded.
    """
    if config.objective.needs_verdicts:
        raise ConfigError('objective.signal = "verdict" samples nothing', where="rollout", expected='"grpo"')
    if not config.objective.needs_rollouts:
        raise ConfigError(
            "objective.lambda_lm = 0 and objective.lambda_kl = 0", where="rollout", expected="one of them above 0"
        )
    sampler = training_sampler(config, runtime.learner.labels("train"))
    folder, metrics = run_dir / "rollouts", MetricsLog(run_dir / "metrics.jsonl")
    make_folder(folder)
    identity, recorded = identity_of(runtime), recordings(folder)
    if recorded:
        newest = recorded[max(recorded)]
        refuse_other_recording(identity, open_recording(newest).identity, where=newest)
    missing = [step for step in range(1, config.run.steps + 1) if step not in recorded]
    if missing:
        check_engine(config, runtime, sampler)
    on_start()
    source = WorkerRolloutSource(config, runtime, sampler)
    answer_key = verdict_key(config)
    for step in missing:
        buffer = RolloutBuffer(config.rollout.contributing_groups)
        num_quarantined = 0
        for index in range(config.rollout.max_micro_batches):
            batch = sampler.micro_batch(step - 1, index, config.rollout.pairs_per_batch)
            encoded = runtime.learner.encode_no_grad(batch)
            source.start(batch, encoded)
            for outcome in source.get_groups(batch, encoded):
                if isinstance(outcome, Quarantined):
                    num_quarantined += 1
                else:
                    buffer.add(outcome)
            if buffer.full:
                break
        source.cancel_rest(step - 1)
        source.end_step(step - 1, index + 1)
        write_recording(recording_path(folder, step), buffer.groups, identity)
        measured = {**buffer.metrics(), **verdict_form_metrics(buffer.groups, answer_key)}
        result = StepResult(step, {**measured, "rollout/quarantined": float(num_quarantined)})
        metrics.write(result)
        on_step(result)
        if should_stop():
            raise Interrupted(f"stopped after step {step}", fix="the same command resumes")
    return len(missing)
