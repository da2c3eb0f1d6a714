"""Conversion of Ray's errors to errors of this package: one line with root cause and the end of the worker's log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from saga_dist.errors import (
    DeadlineExceeded,
    Interrupted,
    SagaError,
    TrainingError,
    UserError,
    WorkerError,
)

FATAL = (UserError, TrainingError, Interrupted)
"""Errors that would be the same on another worker, so that a retry is useless; they end the run."""

_MAX_LINE = 400
"""Largest length of a line from an error or a log, characters."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Node and process of a worker."""

    pid: int
    """Process id."""
    host: str
    """Host name of the node."""
    node_id: str
    """Ray's id of the node."""
    stderr: str
    """Path of the worker's log on its node; empty when it is not known."""
    is_fed: bool = False
    """True: the worker returns groups one by one, and takes others while it works on the rest."""


def to_saga_error(error: RayError, *, where: str, info: WorkerInfo | None = None) -> SagaError:
    """Returns the error of this package that corresponds to an error of Ray.

    An error of this package that the worker raised keeps its class; every other error becomes a ``WorkerError``.

    Args:
        error: the error of Ray.
        where: name of the worker, for the message.
        info: node and process of the worker; None when it has not started.
    """
    while isinstance(error, RayTaskError) and isinstance(error.cause, RayTaskError):
        error = error.cause
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, FATAL):
            return cause
        if isinstance(cause, SagaError):
            return type(cause)(str(cause), where=where)
        return WorkerError(f"{type(cause).__name__}: {one_line(str(cause))}", where=where)
    if isinstance(error, GetTimeoutError):
        return DeadlineExceeded("its answer could not be fetched in time", where=where)
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        reason = one_line(str(error).strip().splitlines()[-1].partition(" Some common causes include")[0])
        line = last_log_line(info)
        return WorkerError(f"its process died ({reason})" + (f"; its log ends: {line}" if line else ""), where=where)
    return WorkerError(f"{type(error).__name__}: {one_line(str(error))}", where=where)


def last_log_line(info: WorkerInfo | None) -> str:
    """Returns the last line of a worker's log that names an error, else the last line; empty without a log here."""
    if info is None or info.node_id != ray.get_runtime_context().get_node_id():
        return ""
    try:
        with Path(info.stderr).open("rb") as log:
            log.seek(max(0, Path(info.stderr).stat().st_size - 16_384))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    lines = [line for line in lines if line and not line.startswith(":")]  # Ray names job and actor in such lines
    errors = [line for line in lines if "Error" in line or line.startswith("Fatal")]
    return one_line((errors or lines or [""])[-1])


def one_line(text: str) -> str:
    """Returns a text without line breaks, truncated to a readable length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + "…"
