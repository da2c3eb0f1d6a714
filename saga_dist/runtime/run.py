"""Runs: opens the run directory, trains a configuration, evaluates it and writes the results.

A run directory holds config.json, metrics.jsonl, tensorboard/, rollouts/, checkpoints/step_*/, model/, hits.npz and
results.json.
"""

from __future__ import annotations

import json
import logging
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from saga_dist.config import RunConfig, load_run_config
from saga_dist.data.sampling import training_sampler
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.metrics.sinks import MetricSink, build_sinks, require_loggers
from saga_dist.models.encoder import load
from saga_dist.protocols import Runtime
from saga_dist.retrieval.first_hits import HITS_NAME, FirstHits, save_hits
from saga_dist.retrieval.results import PRETRAINED, RESULTS_NAME, TRAINED, MethodResult, Results
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.protocol import ReusableRuntime
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.evaluation import embed_images, evaluate_method, retrieval_result
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.training.training_facts import training_facts
from saga_dist.types import StepResult
from saga_dist.utils.atomic_io import remove_leftovers, replaced_folder, write_atomic
from saga_dist.utils.printable import printable

log = logging.getLogger(__name__)


def open_run_directory(path: Path, config: RunConfig) -> Path:
    """Creates or reopens a run directory, writes ``config.json`` if needed, and returns the directory.

    Args:
        path: the run directory.
        config: the whole configuration; in an existing run directory, only keys that do not decide the result may
            differ.

    Raises:
        ConfigError: the directory cannot be created, holds files but no ``config.json``, or belongs to another
            configuration.
    """
    saved = path / "config.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / "rollouts"):
            remove_leftovers(folder)
        if saved.exists() and not _is_json(saved):
            # The file was written atomically, so the disk damaged it. Checkpoints have the configuration's digest, so
            # another configuration is still refused.
            damaged = saved.with_name(f"config.json.damaged-{uuid.uuid4().hex[:8]}")
            log.warning("%s is not valid JSON; renamed to %s and written again", saved, damaged.name)
            saved.replace(damaged)
            write_atomic(saved, (config.model_dump_json(indent=2) + "\n").encode())
        if not saved.exists():
            if any(path.iterdir()):
                raise ConfigError("holds files but no config.json", where=str(path), fix="choose a new --run-dir")
            write_atomic(saved, (config.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"cannot be used ({error.strerror})", where=str(path), fix="choose another --run-dir"
        ) from error
    differences = load_run_config(path).differences(config)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise ConfigError(
            f"the run directory belongs to another configuration: {differences[0]}{more}",
            where=str(path),
            fix="choose a new --run-dir or use the old values",
        )
    return path


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def build_runtime(config: RunConfig) -> ReusableRuntime:
    """Returns the configured runtime. Ray is imported only for the Ray runtime."""
    if config.runtime.kind == "serial":
        from saga_dist.runtime.serial import SerialRuntime

        return SerialRuntime(config)
    from saga_dist.runtime.ray.runtime import RayRuntime

    return RayRuntime(config)


@contextmanager
def metric_sinks(config: RunConfig, run_dir: Path) -> Iterator[list[MetricSink]]:
    """Yields the metric sinks that the section ``logging`` configures, and closes them at the end."""
    sinks = build_sinks(config, run_dir)
    if config.logging.prometheus:
        from saga_dist.runtime.ray.prometheus import RayGauges

        sinks.append(RayGauges(run_dir.name))
    with ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        yield sinks


def train_method(
    name: str,
    config: RunConfig,
    runtime: Runtime,
    run_dir: Path,
    *,
    on_step: Callable[[StepResult], None] = lambda result: None,
    should_stop: Callable[[], bool] = lambda: False,
    evaluate_test: bool = True,
    on_hits: Callable[[str, FirstHits], None] = lambda split, hits: None,
) -> MethodResult:
    """Trains with an open runtime, selects the step on validation classes, writes ``model/``, returns the evaluation.

    Without validation classes (``data.val_fraction = 0``, the paper's protocol) the last step is selected.

    Args:
        name: name of the row in ``results.json``.
        config: the whole configuration.
        runtime: the runtime, whose learner is new.
        run_dir: the run directory, opened for ``config``.
        on_step: called with the metrics of every step.
        should_stop: returns True when the run is to stop.
        evaluate_test: False to evaluate only validation classes, while tuning.
        on_hits: called with each split and the rank of the first hit of each of its queries.

    Raises:
        Interrupted: ``should_stop`` returned True; a checkpoint was written.
    """
    started = time.monotonic()
    sampler = training_sampler(config, runtime.learner.labels("train"))
    with metric_sinks(config, run_dir) as sinks:
        coordinator = Coordinator(
            config, runtime, sampler, run_dir, on_step=on_step, should_stop=should_stop, sinks=sinks
        )
        coordinator.run()
    coordinator.restore_selected()
    _save_model(runtime, run_dir / "model")
    result = evaluate_method(
        name,
        runtime,
        config,
        splits=("val", "test") if evaluate_test else ("val",),
        selected_step=runtime.learner.step,
        wall_s=time.monotonic() - started,
        on_hits=on_hits,
    )
    return result.model_copy(update={"training": training_facts(config, run_dir)})


def _save_model(runtime: Runtime, path: Path) -> None:
    """Writes the deployable encoder; the folder appears completely or not at all."""
    try:
        with replaced_folder(path) as folder:
            runtime.learner.save_encoder(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the encoder ({error.strerror or error})",
            where=str(path),
            fix="free space or check permissions; the same command goes on from the last checkpoint",
        ) from error


def train(config: RunConfig, run_dir: Path, *, on_step: Callable[[StepResult], None] = lambda result: None) -> Results:
    """Trains one configuration, resuming if the directory has checkpoints, and returns the results.

    Args:
        config: the whole configuration.
        run_dir: the run directory; ``results.json`` is written into it.
        on_step: called with the metrics of every step.

    Raises:
        Interrupted: SIGTERM or SIGINT was received; a checkpoint was written.
    """
    require_loggers(config.logging)
    open_run_directory(run_dir, config)
    with stop_on_signal() as should_stop:
        runtime = build_runtime(config)
        try:
            runtime.watch(run_dir)
            return train_on(runtime, config, run_dir, on_step=on_step, should_stop=should_stop)
        finally:
            runtime.close()


def record(config: RunConfig, run_dir: Path, *, on_step: Callable[[StepResult], None] = lambda result: None) -> int:
    """Generates rollouts without training, into ``rollouts/`` of the run directory; returns the number of new steps.

    Args:
        config: the whole configuration.
        run_dir: the run directory.
        on_step: called with the metrics of every step.
    """
    open_run_directory(run_dir, config)
    with stop_on_signal() as should_stop:
        runtime = build_runtime(config)
        try:
            runtime.watch(run_dir)
            return record_rollouts(config, runtime, run_dir, on_step=on_step, should_stop=should_stop)
        finally:
            runtime.close()


def train_on(
    runtime: Runtime,
    config: RunConfig,
    run_dir: Path,
    *,
    on_step: Callable[[StepResult], None] = lambda result: None,
    should_stop: Callable[[], bool] = lambda: False,
    only_pretrained: bool = False,
) -> Results:
    """Evaluates the pre-trained tower, trains, and writes ``hits.npz`` and then ``results.json``; returns the results.

    Args:
        runtime: an open runtime, whose learner is new.
        config: the whole configuration.
        run_dir: the run directory, opened for ``config``.
        on_step: called with the metrics of every step.
        should_stop: returns True when the run is to stop.
        only_pretrained: True to evaluate the pre-trained, mean-pooled tower only and not to train.

    Raises:
        Interrupted: ``should_stop`` returned True; a checkpoint was written.
    """
    hits: dict[tuple[str, str], FirstHits] = {}

    def keep(method: str) -> Callable[[str, FirstHits], None]:
        return lambda split, found: hits.update({(method, split): found})

    before = runtime.backbone_digest()
    start = evaluate_method(
        PRETRAINED, runtime, config, splits=("val", "test"), pretrained=True, on_hits=keep(PRETRAINED)
    )
    methods = [start.model_copy(update={"training": training_facts(config, run_dir, pretrained=True)})]
    if not only_pretrained:
        methods.append(
            train_method(
                TRAINED, config, runtime, run_dir, on_step=on_step, should_stop=should_stop, on_hits=keep(TRAINED)
            )
        )
    results = Results(methods=methods, backbone_unchanged=runtime.backbone_digest() == before)
    save_hits(run_dir / HITS_NAME, hits)
    results.save(run_dir / RESULTS_NAME)
    return results


def evaluate_encoder(run_dir: Path, split: str) -> MethodResult:
    """Returns the retrieval results of a run's deployed encoder (``model/``), which needs no learner and no MLLM.

    Args:
        run_dir: the run directory.
        split: name of the split to evaluate.
    """
    config = load_run_config(run_dir)
    splits = build_splits(config.data, seed=config.run.seed)
    images, encoder = splits.named(split), load(run_dir, family=config.model.own_family)
    result = retrieval_result(
        embed_images(encoder, images),
        embed_images(encoder, splits.gallery) if splits.gallery is not None and split == "test" else None,
        seed=config.run.seed,
        resamples=config.evaluation.bootstrap_resamples,
    )
    return MethodResult(
        name=printable(run_dir.name),
        splits={split: result},
        seeds=(config.run.seed,),
        wall_s=0.0,
        training=training_facts(config, run_dir),
    )


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True once SIGTERM or SIGINT was received.

    A SIGINT after another of these signals raises ``KeyboardInterrupt``.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("%s: finishing this step, then writing a checkpoint", signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
