"""Runs the cells of a table one after the other; the same call goes on where it stopped.

Workers hold only the frozen MLLM, so cells that differ in what the learner does alone share one runtime.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError, Interrupted
from saga_dist.runtime.protocol import ReusableRuntime
from saga_dist.runtime.run import build_runtime, open_run_directory, stop_on_signal, train_on
from saga_dist.sweep.plan import Cell, read_failures, write_failures
from saga_dist.types import StepResult
from saga_dist.utils.printable import printable

log = logging.getLogger(__name__)

Progress = Callable[[Cell], AbstractContextManager[Callable[[StepResult], None]]]

_LEARNERS_OWN = {
    "run": {"steps", "directory"},
    "data": True,
    "model": {"embedding_dim", "pooler", "pooler_key", "pooler_layer_norm"},
    "objective": {"metric_loss", "metric_params", "lambda_dml", "lambda_lm", "lambda_kl"},
    "optimizer": True,
    "checkpoint": True,
    "evaluation": True,
}
"""What the workers never see."""


def run_sweep(cells: Sequence[Cell], out: Path, *, progress: Progress) -> dict[str, str]:
    """Runs every cell that is not finished; returns why cells failed, by name. One failure does not stop the others.

    Args:
        cells: in the order to run them.
        out: directory of the table; made if need be.
        progress: opens the display of a cell and yields its callback for steps.

    Raises:
        Interrupted: asked to stop (SIGTERM, SIGINT); the cell that ran has its checkpoint.
        ConfigError: ``out`` cannot be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot be used ({error.strerror})", where=str(out), fix="choose another --out") from error
    names = {cell.name for cell in cells}
    failures = {name: reason for name, reason in read_failures(out).items() if name in names}
    shared = _SharedRuntime()
    with stop_on_signal() as should_stop:
        try:
            for cell in cells:
                if cell.finished:
                    failures.pop(cell.name, None)
                    continue
                if should_stop():
                    raise Interrupted(f"stopped before {cell.name}", fix="the same command resumes")
                try:
                    _run(cell, shared, progress, should_stop)
                    failures.pop(cell.name, None)
                except Interrupted:
                    raise
                except Exception as error:  # days of other cells must not end with this one
                    log.exception("%s failed", cell.name)
                    failures[cell.name] = printable(" ".join(str(error).split())) or type(error).__name__
                    shared.close()  # whatever state it is in
        finally:
            shared.close()
            write_failures(out, failures)
    return failures


def worker_settings(config: RunConfig) -> str:
    """Returns everything that rollout and replay workers are built from: equal for cells that can share them."""
    seen = config.model_dump(mode="json", exclude=_LEARNERS_OWN)  # type: ignore[arg-type]
    return json.dumps({**seen, "needs_mllm": config.needs_mllm}, sort_keys=True)


def _run(cell: Cell, shared: _SharedRuntime, progress: Progress, should_stop: Callable[[], bool]) -> None:
    open_run_directory(cell.directory, cell.config)
    runtime = shared.for_config(cell.config)
    with progress(cell) as on_step:
        train_on(
            runtime,
            cell.config,
            cell.directory,
            on_step=on_step,
            should_stop=should_stop,
            only_pretrained=cell.variant.pretrained,
        )


class _SharedRuntime:
    """The runtime of the last cell, kept for the next one where it fits."""

    def __init__(self) -> None:
        self._runtime: ReusableRuntime | None = None
        self._settings = ""

    def for_config(self, config: RunConfig) -> ReusableRuntime:
        """Returns a runtime with a fresh learner for this configuration."""
        settings = worker_settings(config)
        if self._runtime is not None and settings == self._settings:
            self._runtime.reset_learner(config)
            return self._runtime
        self.close()
        self._runtime, self._settings = build_runtime(config), settings
        return self._runtime

    def close(self) -> None:
        """Ends the workers; closing twice is fine."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()
