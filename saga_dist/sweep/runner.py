"""Runs the cells of a table one after the other; the same call resumes an interrupted sweep.

Workers hold only the frozen MLLM, so cells that differ only in settings of the learner share one runtime.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.errors import Interrupted
from saga_dist.runtime.protocol import ReusableRuntime
from saga_dist.runtime.run import build_runtime, open_run_directory, train_on
from saga_dist.runtime.stopping import StopRequest, stop_on_signal
from saga_dist.sweep.forecast import forecast
from saga_dist.sweep.plan import Cell, read_failures, write_failures
from saga_dist.types import StepResult
from saga_dist.utils.directory_owner import owned_directory
from saga_dist.utils.printable import printable

log = logging.getLogger(__name__)

Progress = Callable[[Cell], AbstractContextManager[Callable[[StepResult], None]]]
"""Function that opens the progress display of a cell and yields its callback for optimizer steps."""

_LEARNER_SETTINGS = {
    "run": {"steps", "directory"},
    "data": True,
    "model": {"embedding_dim", "pooler", "pooler_key", "pooler_layer_norm"},
    "objective": {"metric_loss", "metric_params", "lambda_dml", "lambda_lm", "lambda_kl"},
    "optimizer": True,
    "checkpoint": True,
    "evaluation": True,
}
"""Sections and keys of the configuration that rollout and replay workers do not use."""


def run_sweep(
    cells: Sequence[Cell], out: Path, *, progress: Progress, stop: StopRequest | None = None
) -> dict[str, str]:
    """Runs every unfinished cell and returns the reasons of failed cells by name; a failure does not stop the others.

    Args:
        cells: cells in the order in which they run.
        out: output directory of the table, created if it is missing.
        progress: opens the progress display of a cell and yields its callback for steps.
        stop: request to stop of the caller; None: signals are obeyed from now on.

    Raises:
        Interrupted: the process received SIGTERM or SIGINT; the running cell has written its checkpoint.
        OutputError: ``out`` cannot be written, or another process is writing there.
    """
    with owned_directory(out, option="--out"), stop_on_signal(stop) as stop:
        return _run_cells(cells, out, progress, stop)


def _run_cells(cells: Sequence[Cell], out: Path, progress: Progress, stop: StopRequest) -> dict[str, str]:
    names = {cell.name for cell in cells}
    failures = {name: reason for name, reason in read_failures(out).items() if name in names}
    shared = _SharedRuntime(stop, out)
    try:
        log.info("%s", forecast(cells))
        for cell in cells:
            if cell.finished:
                failures.pop(cell.name, None)
                continue
            if stop():
                raise Interrupted(f"stopped before {cell.name}", fix="the same command resumes")
            try:
                _run(cell, shared, progress, stop)
                failures.pop(cell.name, None)
                log.info("%s is finished; %s", cell.name, forecast(cells))
            except Interrupted:
                raise
            except Exception as error:  # a failed cell must not end a sweep of days
                log.exception("%s failed", cell.name)
                failures[cell.name] = printable(" ".join(str(error).split())) or type(error).__name__
                shared.close()  # the failure may have left it in any state
    finally:
        with stop.deferred():
            shared.close()
            write_failures(out, failures)
    return failures


def worker_settings(config: RunConfig) -> str:
    """Returns as JSON all settings of rollout and replay workers; cells with equal settings can share workers."""
    settings = config.model_dump(mode="json", exclude=_LEARNER_SETTINGS)  # type: ignore[arg-type]
    return json.dumps({**settings, "needs_mllm": config.needs_mllm}, sort_keys=True)


def _run(cell: Cell, shared: _SharedRuntime, progress: Progress, stop: StopRequest) -> None:
    with owned_directory(cell.directory, option="--out"):
        open_run_directory(cell.directory, cell.config)
        _train(cell, shared.for_config(cell.config), progress, stop)


def _train(cell: Cell, runtime: ReusableRuntime, progress: Progress, stop: StopRequest) -> None:
    with progress(cell) as on_step:
        train_on(
            runtime,
            cell.config,
            cell.directory,
            on_step=on_step,
            stop=stop,
            only_pretrained=cell.variant.pretrained,
        )


class _SharedRuntime:
    """The runtime of the last cell, reused for the next one when their worker settings are equal.

    Args:
        stop: request to stop.
        out: output directory of the table.
    """

    def __init__(self, stop: StopRequest, out: Path) -> None:
        self._stop, self._out = stop, out
        self._runtime: ReusableRuntime | None = None
        self._settings = ""

    def for_config(self, config: RunConfig) -> ReusableRuntime:
        """Returns a runtime with a new learner for this configuration."""
        settings = worker_settings(config)
        if self._runtime is not None and settings == self._settings:
            self._runtime.reset_learner(config)
            return self._runtime
        self.close()
        self._runtime, self._settings = build_runtime(config, stop=self._stop, home=self._out), settings
        return self._runtime

    def close(self) -> None:
        """Stops the workers; may be called more than once."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()
