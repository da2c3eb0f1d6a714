"""Rates from a run: what its steps took, divided by what they did. Of a run that is there, or of a few steps now."""

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
"""Steps that are left out: the first pays for memory and compiled helpers."""


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """What steps of a run were like."""

    num_steps: int
    encode_s: float
    rollout_s: float
    replay_s: float
    update_s: float
    micro_batches: float
    contributing_share: float
    completion_tokens: float
    """Mean of all completions."""
    generated_tokens: float
    replayed_groups: float
    replayed_tokens: float
    """Mean length of a completion that was replayed."""

    @property
    def seconds(self) -> dict[str, float]:
        """Of the four roles in a mean step."""
        return {
            "encode": self.encode_s,
            "rollout": self.rollout_s,
            "replay": self.replay_s,
            "update": self.update_s,
        }

    @property
    def known(self) -> dict[str, float]:
        """What an estimate would have to assume."""
        if not self.generated_tokens:
            return {}
        return {"contributing_share": self.contributing_share, "completion_tokens": self.completion_tokens}


def measure_now(config: RunConfig, num_steps: int) -> tuple[MeasuredSteps, int]:
    """Returns what so many real steps took, in this process and one after the other, and the process's peak bytes.

    Args:
        config: of the run; nothing of it is kept.
        num_steps: after one to warm up.
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
    return measured_from(rows[WARM_UP:], serial), peak


def measured_run(run: Path, config: RunConfig) -> MeasuredSteps:
    """Returns what the steps of a run were like.

    Raises:
        ConfigError: it has no steps yet.
    """
    path = run / "metrics.jsonl"
    written = MetricsLog(path).rows(allow_cut_tail=True) if path.exists() else []
    rows = [row for row in written if "step/update_s" in row]
    if len(rows) <= WARM_UP:
        raise ConfigError(f"has {len(rows)} steps", where=str(run), expected=f"a run with more than {WARM_UP}")
    return measured_from(rows[WARM_UP:], config)


def measured_from(rows: Sequence[Any], config: RunConfig) -> MeasuredSteps:
    """Returns the means over rows of ``metrics.jsonl``."""

    def mean(name: str) -> float:
        return sum(float(row.get(name, 0.0)) for row in rows) / len(rows)

    groups, size = mean("rollout/groups"), config.rollout.group_size
    replayed = mean("rollout/selected")
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
    """Returns the rates at which a run like ``work`` did what was measured.

    Args:
        measured: its steps.
        work: its configuration, with the rates to keep where nothing was measured.
        what: names the measurement, for the reader.
    """
    tower, rates, config = work.shape.tower, work.rates, work.config
    images = measured.micro_batches * config.data.batch_size
    learners = config.runtime.learner_processes
    optimizer_s = OPTIMIZER_BYTES * work.learner.trainable.params / rates.update.value
    backward = images * encoder_backward(tower, checkpointing=work.learner.checkpointing)
    source = f"measured: {what}"
    found = {
        "encoder": Rate(images * encoder_forward(tower) / learners / measured.encode_s, source),
        "encode_overhead": Rate(0.0, f"{source}, within the encoder's rate"),
        "backward": Rate(backward / learners / max(measured.update_s - optimizer_s, 1e-3), source),
    }
    if measured.replayed_groups:
        token_counts = replace(work.token_counts, completion=measured.replayed_tokens)
        operations = group_operations(work.shape.decoder, token_counts, config.rollout.group_size)
        done = measured.replayed_groups * operations.replay(stale=config.rollout.max_staleness > 0)
        found["replay"] = Rate(done / max(1, config.replay.workers) / measured.replay_s, source)
    if measured.generated_tokens and config.rollout.max_staleness == 0:  # a stale run's rollouts are not waited for
        workers = 1 if config.runtime.kind == "serial" else config.rollout.workers
        found["rollout_tokens"] = Rate(measured.generated_tokens / workers / measured.rollout_s, source)
    return replace(rates, **found)


def _peak_bytes() -> int:
    """Highest resident memory of this process so far, host memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
