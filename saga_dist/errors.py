"""Every error this package raises on purpose, in one tree.

A message is one line: what went wrong, where, what was expected, what to do next. Errors survive pickling (they cross
process boundaries in Ray), and each class knows the exit code of the command line.
"""

from __future__ import annotations


class SagaError(Exception):
    """Base of all errors of this package.

    Args:
        what: what went wrong, with the offending value.
        where: file, key, row or worker concerned.
        expected: what would have been right.
        fix: what the reader should do next.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = "") -> None:
        message = f"{where}: {what}" if where else what
        if expected:
            message += f"; expected {expected}"
        if fix:
            message += f"; {fix}"
        super().__init__(message)


class UserError(SagaError):
    """Something the user can mend: exit code 2, one line, no traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration file, key or override is wrong."""


class DataError(UserError):
    """A data set, image or list is wrong."""


class ModelError(UserError):
    """A model folder is missing, unreadable or of a family that is not supported."""


class TokenError(UserError):
    """Encoder tokens do not fit the model that should read them (width, grid, dtype, count, finiteness)."""


class CheckpointError(UserError):
    """A checkpoint or shipped weight file is missing, damaged or from an unknown format."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is not what was written: missing, cut off or altered."""


class WireError(SagaError):
    """An Arrow batch does not have the schema this version reads."""


class WorkerError(SagaError):
    """A worker failed; its work can be retried elsewhere."""


class EngineError(WorkerError):
    """A generation engine raised; it must be replaced before it is used again."""


class DeadlineExceeded(WorkerError):
    """A wait ended by its deadline."""


class TrainingError(SagaError):
    """Training cannot go on (no contributing group, non-finite gradient, too many worker failures)."""


class LearnerLost(TrainingError):
    """The learner's process is gone, and with it what only it held; a new one goes on from the last checkpoint."""


class Interrupted(SagaError):
    """The run was asked to stop (SIGTERM, SIGINT) and has written its checkpoint."""

    exit_code = 3
