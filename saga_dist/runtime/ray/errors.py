"""What Ray raises, as errors of our own: one line, the root cause kept, the worker's last words where at hand."""

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
"""Errors that another worker would only repeat: they end the run at once."""

_MAX_WORDS = 400


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a worker runs."""

    pid: int
    host: str
    node_id: str
    stderr: str
    """Path of its log on its node."""


def to_saga_error(error: RayError, *, where: str, info: WorkerInfo | None = None) -> SagaError:
    """Returns ``error`` as one of ours: what the worker itself raised, else a ``WorkerError`` that says why."""
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
        words = last_words(info)
        return WorkerError(
            f"its process died ({reason})" + (f"; its last words: {words}" if words else ""), where=where
        )
    return WorkerError(f"{type(error).__name__}: {one_line(str(error))}", where=where)


def last_words(info: WorkerInfo | None) -> str:
    """Returns the line of a worker's log that tells most about its death ('' when it is empty or elsewhere)."""
    if info is None or info.node_id != ray.get_runtime_context().get_node_id():
        return ""
    try:
        with Path(info.stderr).open("rb") as log:
            log.seek(max(0, Path(info.stderr).stat().st_size - 16_384))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    lines = [line for line in lines if line and not line.startswith(":")]  # Ray marks job and actor with such lines
    telling = [line for line in lines if "Error" in line or line.startswith("Fatal")]
    return one_line((telling or lines or [""])[-1])


def one_line(text: str) -> str:
    """Returns ``text`` without line breaks, cut to a readable length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_WORDS else line[: _MAX_WORDS - 1] + "…"
