"""The plan that ``--dry-run`` prints: the resolved configuration of a valid run.

This module imports neither torch nor Ray; only the user's own objects, which are imported and tried last, may do so.
"""

from __future__ import annotations

from pathlib import Path

from saga_dist.config import STANDINS, RunConfig
from saga_dist.config.method import AUTO
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import supported_family
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.validation import validate_run
from saga_dist.runtime.validation.facts import joins_cluster


def describe(config: RunConfig, directory: Path) -> str:
    """Returns the plan of a run in a few lines, after its validation.

    Args:
        config: the whole configuration.
        directory: the run directory, which need not exist.

    Raises:
        UserError: the run is not valid; see ``validation.validate_run``.
    """
    warnings = validate_run(config, directory)
    rollout, data, objective = config.rollout, config.data, config.objective
    lines = [
        (
            "run",
            f"{directory} ({'resumes' if (directory / 'config.json').exists() else 'new'}), seed {config.run.seed}",
        ),
        ("model", _model_line(config)),
        ("data", _data_line(config)),
        (
            "batch",
            f"{data.batch_size} images = {data.batch_size // data.images_per_class} classes x {data.images_per_class}",
        ),
        (
            "losses",
            f"{objective.lambda_dml:g} x {objective.metric_loss}, "
            f"{objective.lambda_lm:g} x {'verdict' if objective.signal == 'verdict' else 'GRPO'}, "
            f"{objective.lambda_kl:g} x attention alignment at layer {objective.kl_layer}{_share_advice(config)}",
        ),
    ]
    if objective.needs_mllm:
        lines.append(("prompt", f"{config.prompt.variant}, words of {config.prompt.vocabulary}, {config.prompt.order}"))
    if objective.needs_verdicts:
        lines.append(
            ("verdicts", f"forced, nothing sampled; {rollout.pairs_per_batch} pairs of one micro-batch a step")
        )
    if objective.needs_rollouts:
        lines.append(("reward", objective.reward))
        lines.append(
            (
                "rollouts",
                f"{rollout.engine}, {rollout.workers} worker(s); {rollout.pairs_per_batch} pairs x "
                f"{rollout.group_size} completions per micro-batch, until {rollout.contributing_groups} groups "
                f"contribute or {rollout.max_micro_batches} micro-batches are used",
            )
        )
    lines.append(
        (
            "steps",
            f"{config.run.steps} optimizer steps, lr {config.optimizer.lr_encoder:g} encoder, "
            f"{config.optimizer.lr_pooler:g} pooler, {config.optimizer.schedule}, clip {config.optimizer.clip_norm:g}",
        )
    )
    lines.append(("runtime", _runtime_line(config)))
    lines += [("warning", warning) for warning in warnings]
    return "\n".join([*(f"{name:<9}{text}" for name, text in lines), "the configuration is valid; nothing was trained"])


def _share_advice(config: RunConfig) -> str:
    """Returns where the losses' shares of the gradient are found; empty when only the metric loss trains."""
    if not config.objective.needs_rollouts:
        return ""
    balanced = ", gradients balanced" if config.objective.balance != "none" else ""
    return f"{balanced}; their shares of the gradient depend on model and data: saga-dist doctor measures them"


def check_model_files(path: str) -> str:
    """Returns the name of a local checkpoint's model family, for which only its config.json is read.

    Args:
        path: folder of the checkpoint.

    Raises:
        ModelError: there is no such folder, its config.json cannot be read, or the family is not supported.
    """
    return supported_family(ModelFiles(path).json("config.json"), where=path)


def _model_line(config: RunConfig) -> str:
    path, model = config.model.path, config.model
    pooler = f"{model.pooler} pooler, embedding {model.embedding_dim}, {model.dtype}"
    if path in STANDINS:
        other = f" of pre-training seed {STANDINS[path]}" if STANDINS[path] else ""
        return f"built-in stand-in{other}, {pooler}"
    if Path(path).expanduser().is_dir():
        family = check_model_files(path) if model.family == AUTO else model.family
        return f"{path} ({family}), {pooler}"
    if path.startswith(("/", ".", "~")):
        return f"{path} (not on this machine), {pooler}"
    return f"{path} at {model.revision} (hub; looked up when training starts), {pooler}"


def _data_line(config: RunConfig) -> str:
    data = config.data
    if data.layout == "birds":
        birds = data.birds
        return f"built-in birds, {birds.train_classes} training classes x {birds.train_images_per_class} images"
    if joins_cluster(config) and not Path(data.root).expanduser().exists():
        return f"{data.root} (not on this machine)"
    splits = build_splits(data, seed=config.run.seed)
    parts = [
        f"{name} {len(images.class_names)} classes, {len(images)} images"
        for name, images in (
            ("train", splits.train),
            ("validation", splits.val),
            ("test", splits.test),
            ("gallery", splits.gallery),
        )
        if images is not None
    ]
    return f"{data.root}: {'; '.join(parts)}"


def _runtime_line(config: RunConfig) -> str:
    runtime = config.runtime
    if runtime.kind == "serial":
        return "serial: everything in this process"
    where = runtime.address or f"the job's cluster, or a local one with {runtime.local_cpus} CPUs"
    replay = f"{config.replay.workers} replay worker(s)" if config.replay.workers else "replay in the learner"
    rollouts = f"{config.rollout.workers} rollout worker(s)" if config.needs_engine else "no rollout workers"
    return f"Ray at {where}: learner, {rollouts}, {replay}"
