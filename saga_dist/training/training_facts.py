"""Facts about the training of a run, from its configuration, its pair ledger and its metrics."""

from __future__ import annotations

from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.retrieval.results import TrainingFacts


def training_facts(config: RunConfig, run_dir: Path, *, pretrained: bool = False) -> TrainingFacts:
    """Returns the facts about a finished run.

    Args:
        config: configuration of the run.
        run_dir: the run directory.
        pretrained: True for the pre-trained encoder of the run, which saw no images.

    Raises:
        CheckpointError: the pair ledger or metrics.jsonl is damaged.
    """
    model, side = config.model, config.data.image_size
    # Folders are shown by their names, because the paths of one machine say nothing on another.
    start = Path(model.path).name if Path(model.path).is_dir() else model.path
    return TrainingFacts(
        metric_loss=None if pretrained or not config.objective.lambda_dml else config.objective.metric_loss,
        optimizer_steps=0 if pretrained else config.run.steps,
        images_seen=0 if pretrained else _images_seen(config, run_dir),
        image_height=side,
        image_width=side,
        pretraining=start if model.revision == "main" else f"{start}@{model.revision}",
        remark=None if pretrained else _remark(config, run_dir),
    )


def _remark(config: RunConfig, run_dir: Path) -> str | None:
    """Returns the remark on a run to which the frozen MLLM contributed little or nothing; None without one."""
    if not config.objective.needs_mllm:
        return None
    from saga_dist.metrics.log import MetricsLog  # imports torch
    from saga_dist.training.contribution_monitor import contribution_remark

    metrics = run_dir / "metrics.jsonl"
    return (
        contribution_remark(list(MetricsLog(metrics).rows(allow_cut_tail=True)), config) if metrics.exists() else None
    )


def _images_seen(config: RunConfig, run_dir: Path) -> int | None:
    """Returns the images of all micro-batches; None when their number was not fixed and the run has no full ledger."""
    steps, batch = config.run.steps, config.data.batch_size
    if not config.objective.needs_rollouts or config.rollout.max_micro_batches == 1:
        return steps * batch
    from saga_dist.training.pair_ledger import LEDGER_NAME, PairLedger  # imports torch

    micro_batches = PairLedger(run_dir / LEDGER_NAME).micro_batches()
    if micro_batches.keys() != set(range(1, steps + 1)):
        return None
    return batch * sum(micro_batches.values())
