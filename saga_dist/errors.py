"""The exception tree of this package.

A message is one line: what went wrong, where, what was expected, what to do next. Errors can be pickled, because they
cross process boundaries in Ray. Each class has the exit code of the command line: 2 for a ``UserError``, which is about
something that the user has chosen or can mend (settings, arguments, files, outputs); 3 for ``Interrupted``; 1 for the
others, which are failures of the system.
"""

from __future__ import annotations


class SagaError(Exception):
    """Base of all errors of this package.

    Args:
        what: what went wrong, with the wrong value.
        where: file, key, row or worker concerned; empty for none.
        expected: the values that are valid; empty for none.
        fix: what the user should do next; empty for none.
    """

    exit_code: int = 1
    """Exit code of the command line when this error ends it."""

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = "") -> None:
        message = f"{where}: {what}" if where else what
        if expected:
            message += f"; expected {expected}"
        if fix:
            message += f"; {fix}"
        super().__init__(message)


class UserError(SagaError):
    """A mistake that the user can correct; the command line prints one line without a traceback, with exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration file, key or override is wrong."""


class DataError(UserError):
    """A data set, an image, a list of images or classes, a recording or a file of results is wrong."""


class ModelError(UserError):
    """A model folder is missing, unreadable or of a family that is not supported."""


class TokenError(UserError):
    """Encoder tokens do not fit the model (width, grid, dtype, number of tokens) or are not finite."""


class CheckpointError(UserError):
    """A checkpoint or shipped weight file is missing, damaged or of an unknown format."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint differs from what was written: it is missing, truncated or altered."""


class OutputError(UserError):
    """An output file or directory cannot be written, or another process is writing it."""

    reason: str = ""
    """Words of the operating system, such as "No space left on device"; empty when it did not report an error."""


class WireError(SagaError):
    """An Arrow batch between two processes does not have the schema this version reads; a file raises ``DataError``."""


class WorkerError(SagaError):
    """A worker failed; its tasks can be retried on another worker."""


class EngineError(WorkerError):
    """A rollout engine failed; it must be replaced before more completions are generated."""


class DeadlineExceeded(WorkerError):
    """A call did not end before its deadline."""


class TrainingError(SagaError):
    """Training cannot continue (non-finite gradient, engine and replay that disagree, learner lost too often)."""


class LearnerLost(TrainingError):
    """The learner's process died, hung or lost a payload; a new learner continues from the last checkpoint."""


class Interrupted(SagaError):
    """The run stopped on request (SIGTERM, SIGINT): before the first step, or after writing a checkpoint."""

    exit_code = 3
