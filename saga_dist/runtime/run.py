"""Runs: opens the run directory, trains a configuration, evaluates it and writes the results.

A run directory holds config.json, metrics.jsonl, tensorboard/, rollouts/, checkpoints/step_*/, model/, hits.npz and
results.json.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.config.comparison import name_keys
from saga_dist.data.sampling import training_sampler
from saga_dist.errors import ConfigError
from saga_dist.metrics.sinks import MetricSink, build_sinks, require_loggers
from saga_dist.models.encoder import load
from saga_dist.protocols import Runtime
from saga_dist.retrieval.first_hits import HITS_NAME, FirstHits, save_hits
from saga_dist.retrieval.results import PRETRAINED, RESULTS_NAME, TRAINED, MethodResult, Results
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.earlier_run import changed_keys, is_unfinished_start
from saga_dist.runtime.protocol import ReusableRuntime
from saga_dist.runtime.stopping import StopRequest, stop_on_signal
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.evaluation import embed_images, evaluate_method, retrieval_result
from saga_dist.training.identity import identity_of
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.training.training_facts import training_facts
from saga_dist.types import StepResult
from saga_dist.utils.atomic_io import remove_leftovers, replaced_folder, write_atomic
from saga_dist.utils.directory_owner import owned_directory
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder
from saga_dist.utils.printable import printable
from saga_dist.utils.stages import stage
from saga_dist.utils.waiting import lasting
from saga_dist.wire import RunIdentity

log = logging.getLogger(__name__)


def open_run_directory(path: Path, config: RunConfig) -> Path:
    """Creates or reopens a run directory, writes ``config.json`` if needed, and returns the directory.

    Args:
        path: the run directory.
        config: the whole configuration; in a run directory with finished steps, only keys that do not decide the result
            may differ.

    Raises:
        ConfigError: the directory holds files but no ``config.json``, or belongs to another configuration.
        OutputError: it cannot be written.
    """
    saved = path / "config.json"
    with output_errors(path, option="--run-dir"):
        make_folder(path)
        for folder in (path, path / "rollouts"):
            remove_leftovers(folder)
        if saved.exists() and not _is_json(saved):
            # The file was written atomically, so the disk damaged it. Checkpoints have the configuration's digest, so
            # another configuration is still refused.
            damaged = saved.with_name(f"config.json.damaged-{uuid.uuid4().hex[:8]}")
            log.warning("%s is not valid JSON; renamed to %s and written again", saved, damaged.name)
            saved.replace(damaged)
            _write_config(saved, config)
        if not saved.exists():
            if not is_unfinished_start(path):
                raise ConfigError("holds files but no config.json", where=str(path), fix="choose a new --run-dir")
            _write_config(saved, config)
    if changed := changed_keys(path, config):
        log.warning("%s: no step was taken, so its configuration is replaced: %s", path, name_keys(changed))
        _write_config(saved, config)
    return path


def _write_config(path: Path, config: RunConfig) -> None:
    write_atomic(path, (config.model_dump_json(indent=2) + "\n").encode())


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def build_runtime(config: RunConfig, *, stop: StopRequest | None = None, home: Path | None = None) -> ReusableRuntime:
    """Returns the configured runtime. Ray is imported only for the Ray runtime.

    Args:
        config: the whole configuration.
        stop: request to stop, which ends every wait before the first step; None when there is none.
        home: directory of the run or the table, in which processes and files outside of it are recorded; None to
            record nothing.
    """
    if config.runtime.kind == "serial":
        from saga_dist.runtime.serial import SerialRuntime

        return SerialRuntime(config)
    from saga_dist.runtime.ray.runtime import RayRuntime

    stage("starting Ray and the workers of this run on it")
    return RayRuntime(config, stop=stop, home=home)


@contextmanager
def open_runtime(config: RunConfig, run_dir: Path, stop: StopRequest) -> Iterator[ReusableRuntime]:
    """Yields the runtime of one run and closes it, which a signal does not interrupt.

    Args:
        config: the whole configuration.
        run_dir: the run directory, opened for ``config``.
        stop: request to stop.
    """
    runtime = build_runtime(config, stop=stop, home=run_dir)
    try:
        runtime.watch(run_dir)
        yield runtime
    finally:
        with stop.deferred():
            runtime.close()


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
    stop: StopRequest | None = None,
    evaluate_test: bool = True,
    on_hits: Callable[[str, FirstHits], None] = lambda split, hits: None,
    identity: RunIdentity | None = None,
) -> MethodResult:
    """Trains with an open runtime, selects the step on validation classes, writes ``model/``, returns the evaluation.

    Without validation classes (``data.val_fraction = 0``, the paper's protocol) the last step is selected.

    Args:
        name: name of the row in ``results.json``.
        config: the whole configuration.
        runtime: the runtime, whose learner is new.
        run_dir: the run directory, opened for ``config``.
        on_step: called with the metrics of every step.
        stop: request to stop; None when there is none.
        evaluate_test: False to evaluate only validation classes, while tuning.
        on_hits: called with each split and the rank of the first hit of each of its queries.
        identity: weights, data and code of the run; None: those of the runtime.

    Raises:
        Interrupted: a stop was requested; a checkpoint was written.
    """
    started, stop = time.monotonic(), stop or StopRequest()
    sampler = training_sampler(config, runtime.learner.labels("train"))
    with metric_sinks(config, run_dir) as sinks:
        coordinator = Coordinator(
            config,
            runtime,
            sampler,
            run_dir,
            on_start=stop.steps_begin,
            on_step=on_step,
            should_stop=stop,
            sinks=sinks,
            identity=identity,
        )
        coordinator.run()
    coordinator.restore_selected()
    with replaced_folder(run_dir / "model") as folder:
        runtime.learner.save_encoder(folder)
    result = evaluate_method(
        name,
        runtime,
        config,
        splits=("val", "test") if evaluate_test else ("val",),
        selected_step=runtime.learner.step,
        wall_s=time.monotonic() - started,
        on_hits=on_hits,
    )
    facts = training_facts(config, run_dir, selected_step=runtime.learner.step)
    return result.model_copy(update={"training": facts})


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    on_step: Callable[[StepResult], None] = lambda result: None,
    stop: StopRequest | None = None,
) -> Results:
    """Trains one configuration, resuming if the directory has checkpoints, and returns the results.

    Args:
        config: the whole configuration.
        run_dir: the run directory; ``results.json`` is written into it.
        on_step: called with the metrics of every step.
        stop: request to stop of the caller; None: signals are obeyed from now on.

    Raises:
        Interrupted: SIGTERM or SIGINT was received; a checkpoint was written.
    """
    require_loggers(config.logging)
    with owned_directory(run_dir, option="--run-dir"), stop_on_signal(stop) as stop:
        open_run_directory(run_dir, config)
        with open_runtime(config, run_dir, stop) as runtime:
            return train_on(runtime, config, run_dir, on_step=on_step, stop=stop)


def record(
    config: RunConfig,
    run_dir: Path,
    *,
    on_step: Callable[[StepResult], None] = lambda result: None,
    stop: StopRequest | None = None,
) -> int:
    """Generates rollouts without training, into ``rollouts/`` of the run directory; returns the number of new steps.

    Args:
        config: the whole configuration.
        run_dir: the run directory.
        on_step: called with the metrics of every step.
        stop: as for ``train``.
    """
    with owned_directory(run_dir, option="--run-dir"), stop_on_signal(stop) as stop:
        open_run_directory(run_dir, config)
        with open_runtime(config, run_dir, stop) as runtime:
            return record_rollouts(
                config, runtime, run_dir, on_start=stop.steps_begin, on_step=on_step, should_stop=stop
            )


def train_on(
    runtime: Runtime,
    config: RunConfig,
    run_dir: Path,
    *,
    on_step: Callable[[StepResult], None] = lambda result: None,
    stop: StopRequest | None = None,
    only_pretrained: bool = False,
) -> Results:
    """Evaluates the pre-trained tower, trains, and writes ``hits.npz`` and then ``results.json``; returns the results.

    Args:
        runtime: an open runtime, whose learner is new.
        config: the whole configuration.
        run_dir: the run directory, opened for ``config``.
        on_step: called with the metrics of every step.
        stop: request to stop; None when there is none.
        only_pretrained: True to evaluate the pre-trained, mean-pooled tower only and not to train.

    Raises:
        Interrupted: a stop was requested; a checkpoint was written.
    """
    hits: dict[tuple[str, str], FirstHits] = {}

    def keep(method: str) -> Callable[[str, FirstHits], None]:
        return lambda split, found: hits.update({(method, split): found})

    with lasting("hashing the frozen weights"):
        identity = identity_of(runtime)
        start = evaluate_method(
            PRETRAINED, runtime, config, splits=("val", "test"), pretrained=True, on_hits=keep(PRETRAINED)
        )
    methods = [start.model_copy(update={"training": training_facts(config, run_dir, pretrained=True)})]
    if not only_pretrained:
        methods.append(
            train_method(
                TRAINED,
                config,
                runtime,
                run_dir,
                on_step=on_step,
                stop=stop,
                on_hits=keep(TRAINED),
                identity=identity,
            )
        )
    # Equal to that of every earlier attempt too: a checkpoint made with another backbone is refused.
    results = Results(methods=methods, backbone_unchanged=runtime.backbone_digest() == identity.backbone)
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
    selected_step = _selected_step(run_dir)
    return MethodResult(
        name=printable(run_dir.name),
        splits={split: result},
        seeds=(config.run.seed,),
        wall_s=0.0,
        optimizer_steps=config.run.steps,
        selected_step=selected_step or 0,
        training=training_facts(config, run_dir, selected_step=selected_step),
    )


def _selected_step(run_dir: Path) -> int | None:
    """Returns the step of the model in ``model/`` by the run's results; None before the run has finished."""
    saved = run_dir / RESULTS_NAME
    return Results.load(saved).methods[-1].selected_step if saved.is_file() else None  # a run writes its own row last
