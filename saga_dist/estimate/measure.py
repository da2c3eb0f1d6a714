"""Measured rates: the work of a run's steps divided by their duration.

The steps are those in the ``metrics.jsonl`` of a run directory, or a few steps that are run for the purpose.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saga_dist.config import RunConfig, RuntimeSection
from saga_dist.data.sampling import training_sampler
from saga_dist.errors import ConfigError
from saga_dist.estimate.operations import (
    OPTIMIZER_BYTES,
    encoder_backward,
    encoder_forward,
    group_operations,
)
from saga_dist.estimate.rates import Rate, Rates
from saga_dist.estimate.steps import Workload
from saga_dist.metrics.log import MetricsLog
from saga_dist.runtime.serial import SerialRuntime
from saga_dist.training.coordinator import Coordinator

WARM_UP = 1
"""Number of first steps left out: they include memory allocation and the compilation of helpers."""


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Means over several steps of a run."""

    num_steps: int
    """Number of steps averaged."""
    encode_s: float
    """Seconds of the encode phase per step."""
    rollout_s: float
    """Seconds of the rollout phase per step."""
    replay_s: float
    """Seconds of the replay phase per step."""
    update_s: float
    """Seconds of the update phase per step."""
    micro_batches: float
    """Micro-batches per step."""
    contributing_share: float
    """Share of groups whose rewards vary, 0 to 1."""
    completion_tokens: float
    """Tokens per completion, over all completions."""
    generated_tokens: float
    """Tokens generated per step; 0 when the run has no rollouts."""
    replayed_groups: float
    """Groups replayed per step."""
    replayed_tokens: float
    """Tokens per replayed completion."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per step, by role."""
        return {
            "encode": self.encode_s,
            "rollout": self.rollout_s,
            "replay": self.replay_s,
            "update": self.update_s,
        }

    @property
    def inputs(self) -> dict[str, float]:
        """Measured values of the inputs that an estimate otherwise assumes; empty when the run has no rollouts."""
        if not self.generated_tokens:
            return {}
        return {"contributing_share": self.contributing_share, "completion_tokens": self.completion_tokens}


def measure_steps(config: RunConfig, num_steps: int) -> tuple[MeasuredSteps, int]:
    """Runs training steps in this process with the serial runtime; returns their means and the process's peak memory.

    Args:
        config: configuration of the run; its results are written to a temporary directory and deleted.
        num_steps: number of steps to measure, after ``WARM_UP`` steps that are not.

    Returns:
        steps: means over the steps.
        peak: highest resident memory of the process so far, in bytes; 0 where the system does not report it.
    """
    runtime: RuntimeSection = config.runtime.model_copy(update={"kind": "serial", "learner_processes": 1})
    serial = config.model_copy(update={"runtime": runtime})
    with tempfile.TemporaryDirectory() as folder:
        running = SerialRuntime(serial)
        try:
            labels = running.learner.labels("train")
            sampler = training_sampler(serial, labels)
            coordinator = Coordinator(serial, running, sampler, Path(folder))
            rows = [coordinator.train_step().metrics for _ in range(WARM_UP + num_steps)]
            peak = _peak_bytes()
        finally:
            running.close()
    return mean_steps(rows[WARM_UP:], serial), peak


def steps_of_run(run: Path, config: RunConfig) -> MeasuredSteps:
    """Returns the means over the steps of a run directory.

    Args:
        run: run directory with ``metrics.jsonl``.
        config: configuration of that run.

    Raises:
        ConfigError: the run has no more than ``WARM_UP`` finished steps.
    """
    path = run / "metrics.jsonl"
    written = MetricsLog(path).rows(allow_cut_tail=True) if path.exists() else []
    rows = [row for row in written if "step/update_s" in row]
    if len(rows) <= WARM_UP:
        raise ConfigError(f"has {len(rows)} steps", where=str(run), expected=f"a run with more than {WARM_UP}")
    return mean_steps(rows[WARM_UP:], config)


def mean_steps(rows: Sequence[Any], config: RunConfig) -> MeasuredSteps:
    """Returns the means over rows of ``metrics.jsonl``."""

    def mean(name: str) -> float:
        return sum(float(row.get(name, 0.0)) for row in rows) / len(rows)

    groups, size = mean("rollout/groups"), config.completions_per_pair
    replayed = mean("rollout/selected") + mean("verdict/pairs")  # a run has one of the two
    return MeasuredSteps(
        num_steps=len(rows),
        encode_s=mean("step/encode_s"),
        rollout_s=mean("step/rollout_s"),
        replay_s=mean("step/replay_s"),
        update_s=mean("step/update_s"),
        micro_batches=groups / config.rollout.pairs_per_batch if groups else 1.0,
        contributing_share=mean("rollout/contributing_share"),
        completion_tokens=mean("rollout/completion_tokens_mean"),
        generated_tokens=mean("rollout/tokens"),
        replayed_groups=replayed,
        replayed_tokens=mean("replay/tokens") / (replayed * size) if replayed else 0.0,
    )


def rates_from(measured: MeasuredSteps, work: Workload, *, what: str) -> Rates:
    """Returns rates with which an estimate of ``work`` gives the measured durations.

    Args:
        measured: means over the measured steps.
        work: workload of the run that was measured; its rates are kept where nothing was measured.
        what: description of the measurement, printed as the source of the rates.
    """
    tower, rates, config = work.shape.tower, work.rates, work.config
    images = measured.micro_batches * config.data.batch_size
    learners = config.runtime.learner_processes
    optimizer_s = OPTIMIZER_BYTES * work.learner.trainable.params / rates.update.value
    backward = images * encoder_backward(tower, checkpointing=work.learner.checkpointing)
    source = f"measured: {what}"
    measured_rates = {
        "encoder": Rate(images * encoder_forward(tower) / learners / measured.encode_s, source),
        "encode_overhead": Rate(0.0, f"{source}, within the encoder's rate"),
        "backward": Rate(backward / learners / max(measured.update_s - optimizer_s, 1e-3), source),
    }
    if measured.replayed_groups:
        token_counts = replace(work.token_counts, completion=measured.replayed_tokens)
        operations = group_operations(work.shape.decoder, token_counts, config.completions_per_pair)
        total = measured.replayed_groups * operations.replay(stale=config.rollout.max_staleness > 0)
        measured_rates["replay"] = Rate(total / max(1, config.replay.workers) / measured.replay_s, source)
    # With prefetched rollouts, rollout_s is only the time the learner waited, so it gives no rate.
    if measured.generated_tokens and config.rollout.max_staleness == 0:
        workers = 1 if config.runtime.kind == "serial" else config.rollout.workers
        measured_rates["rollout_tokens"] = Rate(measured.generated_tokens / workers / measured.rollout_s, source)
    return replace(rates, **measured_rates)


def _peak_bytes() -> int:
    """Returns the highest resident memory of this process so far, in bytes; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
