"""The checkpoints of one run: written atomically; the newest valid one is found without further bookkeeping.

Folders with a plain ``step_N`` name are complete. The small files ``latest`` and ``best`` are for people and tools; the
newest checkpoint is the folder with the highest step.

A damaged folder is quarantined: it is renamed to ``step_N.damaged-<id>`` and never deleted. The checkpoint before it is
used; when the local disk has no valid one, the newest valid copy of the mirror. When there are checkpoints but none is
valid, an error is raised, because only a person can decide to start the run again.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saga_dist.checkpoint.manifest import CheckpointInfo, folder_name, step_of, verify
from saga_dist.checkpoint.mirror import CheckpointMirror
from saga_dist.checkpoint.writing import temporary_beside, write_folder
from saga_dist.errors import CheckpointError, DamagedCheckpoint, OutputError
from saga_dist.utils.atomic_io import crash_point, fsync_path, write_atomic
from saga_dist.utils.output_files import make_folder

log = logging.getLogger(__name__)

_LOST = "restore it from a copy, or choose a new --run-dir"


class CheckpointStore:
    """The checkpoints of one run on the local disk, copied to a mirror when there is one.

    Args:
        folder: folder of ``step_*``, ``latest`` and ``best``; created by the first write.
        keep: number of newest checkpoints to keep, at least 1; the best one is always kept.
        mirror: destination of a copy of every committed checkpoint; None: no copies.

    Raises:
        CheckpointError: ``keep`` is less than 1.
    """

    def __init__(self, folder: Path, keep: int, mirror: CheckpointMirror | None = None) -> None:
        if keep < 1:
            raise CheckpointError(f"keep = {keep}", where="checkpoint.keep", expected="at least 1")
        self._folder, self._keep, self._mirror, self._cleaned = Path(folder), keep, mirror, False
        self._failures: dict[str, float] = {}
        self._damaged_copies: set[int] = set()

    # ------------------------------------------------------------------ listing

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint; the folder need not exist."""
        return self._folder / folder_name(step)

    def has(self, step: int) -> bool:
        """True when the step has a checkpoint (not verified)."""
        return self.path(step).is_dir()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending (not verified)."""
        if not self._folder.is_dir():
            return []
        found = ((step_of(path.name), path) for path in self._folder.iterdir())
        return sorted(step for step, path in found if step is not None and path.is_dir())

    def best(self) -> Path | None:
        """Returns the folder named by the file ``best``; None without that file or folder."""
        marker = self._folder / "best"
        name = marker.read_text("utf-8", "replace").strip() if marker.is_file() else ""
        return self._folder / name if step_of(name) is not None and (self._folder / name).is_dir() else None

    def metrics(self) -> dict[str, float]:
        """Returns the numbers of failed saves and failed copies to the mirror since the last call, and resets them.

        The names are ``checkpoint/failed`` and ``checkpoint/mirror_failed``; a name without failures is left out.
        """
        failures, self._failures = self._failures, {}
        return failures

    # ------------------------------------------------------------------ reading

    def newest(self) -> CheckpointInfo | None:
        """Returns the newest valid checkpoint; None when there are no checkpoints at all.

        Only the process that writes checkpoints calls this, when it starts. Newer damaged checkpoints are quarantined
        with a warning. When the local disk has no valid checkpoint, the newest valid copy of the mirror is downloaded.

        Raises:
            CheckpointError: there are checkpoints but none is valid; or the newest has another format; or the mirror
                cannot be read and the local disk has no valid checkpoint.
        """
        with self._disk_errors(self._folder, "remove what a crash left"):
            self._clean_once()
        problems: dict[int, DamagedCheckpoint] = {}
        for step in reversed(self.steps()):
            try:
                info = verify(self.path(step))
            except DamagedCheckpoint as error:
                problems[step] = error
                continue
            for damaged, problem in problems.items():
                self._quarantine(damaged, problem, instead=step)
            return info
        copies = self._mirror.steps() if self._mirror is not None else []
        copy = self._download(list(reversed(copies)), problems)
        if copy is None and (problems or copies):
            raise CheckpointError(
                "no checkpoint is valid" + (f"; the newest: {next(iter(problems.values()))}" if problems else ""),
                where=str(self._folder if problems else self._mirror),
                fix="restore a step_* folder from a copy, or choose a new --run-dir",
            )
        return copy

    def verified(self, step: int) -> CheckpointInfo:
        """Returns the verified checkpoint of one step, downloaded from the mirror when the local one is not valid.

        Raises:
            CheckpointError: neither the local disk nor the mirror has a valid checkpoint of the step, or its manifest
                has another format.
        """
        try:
            return verify(self.path(step))
        except DamagedCheckpoint as error:
            copy = self._download([step], {step: error} if self.has(step) else {})
            if copy is None:
                raise CheckpointError(str(error), fix=_LOST) from error
            return copy

    def _download(self, steps: Sequence[int], problems: Mapping[int, DamagedCheckpoint]) -> CheckpointInfo | None:
        """Downloads the first valid copy among ``steps`` and returns it; returns None when no copy is valid.

        Args:
            steps: steps of the mirror, in the order in which they are tried.
            problems: damaged local checkpoints by step, quarantined once a valid copy is found.
        """
        if self._mirror is None:
            return None
        for step in steps:
            temporary = temporary_beside(self.path(step))
            with self._disk_errors(self.path(step), "bring the checkpoint from the mirror"):
                try:
                    self._mirror.download(step, temporary)
                    verify(temporary, name=folder_name(step))
                except DamagedCheckpoint as error:
                    log.warning("the copy of step %d is passed over: %s", step, error)
                    self._damaged_copies.add(step)
                    continue
                else:
                    for damaged, problem in problems.items():
                        self._quarantine(damaged, problem, instead=step)
                    crash_point("downloaded", self.path(step))
                    temporary.rename(self.path(step))
                    fsync_path(self._folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            log.warning("the checkpoint of step %d was brought from %s", step, self._mirror)
            return verify(self.path(step))
        return None

    def _quarantine(self, step: int, problem: DamagedCheckpoint, *, instead: int | None = None) -> None:
        """Renames a damaged checkpoint to ``step_N.damaged-<id>`` and logs a warning.

        Args:
            step: step of the damaged checkpoint.
            problem: the damage, for the warning.
            instead: step of the checkpoint that is used in its place, for the warning; None: not mentioned.
        """
        path = self.path(step)
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
        log.warning(
            "%s; set aside as %s%s", problem, aside.name, "" if instead is None else f"; step {instead} is used instead"
        )
        with self._disk_errors(path, "set the damaged checkpoint aside"):
            path.rename(aside)
            crash_point("set aside", path)
            fsync_path(self._folder)

    # ------------------------------------------------------------------ writing

    def write(
        self,
        step: int,
        write_files: Callable[[Path], None],
        extra: Mapping[str, Any] | None = None,
        *,
        best: int | None = None,
    ) -> Path:
        """Writes the checkpoint of a step, removes old checkpoints and copies the new one to the mirror.

        An existing valid checkpoint of the same step is left as it is; a damaged one is quarantined.

        Args:
            step: number of optimizer steps done.
            write_files: function that writes the training state into the folder it receives.
            extra: JSON data to keep in the manifest; ``config_digest`` by convention.
            best: step of the best checkpoint so far, which is marked and never removed; None or a negative number:
                there is none.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are unchanged.
        """
        final = self.path(step)
        with self._disk_errors(final, "write the checkpoint"):
            make_folder(self._folder)
            self._clean_once()
            if final.is_dir() and self._is_valid(step):
                log.info("%s is there already", final)
            else:
                write_folder(final, step, write_files, extra or {})
        self.finalize(step, best=best)
        return final

    def try_write(
        self,
        step: int,
        write_files: Callable[[Path], None],
        extra: Mapping[str, Any] | None = None,
        *,
        best: int | None = None,
    ) -> bool:
        """Writes an optional checkpoint: a failure is logged as a warning and counted in ``metrics``.

        The arguments are those of ``write``.

        Returns:
            True when the step has a checkpoint afterwards.

        Raises:
            CheckpointError: the checkpoint cannot be written, and there is no valid earlier one to resume from.
        """
        try:
            self.write(step, write_files, extra, best=best)
        except CheckpointError as error:
            if not any(self._is_valid(earlier) for earlier in reversed(self.steps())):
                raise
            self._failures["checkpoint/failed"] = self._failures.get("checkpoint/failed", 0.0) + 1
            log.warning("%s; training goes on, the next save that is due tries again", error)
        return self.has(step)

    def finalize(self, step: int, *, best: int | None) -> None:
        """Updates ``latest`` and ``best``, removes old checkpoints, and copies the step and the best one to the mirror.

        Called after every commit, and again on resume in case a crash interrupted it. A failure of the mirror is only
        logged as a warning and counted in ``metrics``.

        Args:
            step: step that was committed.
            best: step of the best checkpoint; None or a negative number: there is none.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        with self._disk_errors(self.path(step), "tidy up after the checkpoint"):
            write_atomic(self._folder / "latest", f"{folder_name(self.steps()[-1])}\n".encode())
            if best is not None and best >= 0 and self.has(best):
                write_atomic(self._folder / "best", f"{folder_name(best)}\n".encode())
            self._remove_old(best)
        if self._mirror is not None:
            self._copy(self._mirror, step, best)

    def _copy(self, mirror: CheckpointMirror, step: int, best: int | None) -> None:
        try:
            for wanted in sorted({step, step if best is None else best}):
                if self.has(wanted):
                    mirror.upload(self.path(wanted), overwrite=wanted in self._damaged_copies)
                    self._damaged_copies.discard(wanted)
            mirror.retain(step, best=best)
        except (CheckpointError, OSError) as error:
            name = "checkpoint/mirror_failed"
            self._failures[name] = self._failures.get(name, 0.0) + 1
            log.warning("the mirror did not take step %d, the local checkpoint is there: %s", step, error)

    def clean(self) -> None:
        """Removes the temporary files of interrupted writes. Only the process that writes checkpoints may call this."""
        for leftover in (*self._folder.glob("step_*.tmp-*"), *self._folder.glob(".*.tmp-*")):
            log.info("removing %s, left by an interrupted write", leftover)
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _clean_once(self) -> None:
        if not self._cleaned:
            self.clean()
            self._cleaned = True

    def _remove_old(self, best: int | None) -> None:
        for step in self.steps()[: -self._keep]:
            if step != best and self.path(step) != self.best():
                doomed = temporary_beside(self.path(step))
                self.path(step).rename(doomed)  # a partly removed folder must not look like a checkpoint
                crash_point("doomed", self.path(step))
                shutil.rmtree(doomed)
                crash_point("removed", self.path(step))

    def _is_valid(self, step: int) -> bool:
        """Returns True when the step's checkpoint is valid; quarantines a damaged one."""
        try:
            verify(self.path(step))
        except DamagedCheckpoint as error:
            self._quarantine(step, error)
            return False
        return True

    @contextmanager
    def _disk_errors(self, path: Path, what: str) -> Iterator[None]:
        """Turns an error of the disk inside the block into a CheckpointError of one line.

        An OutputError without words of the operating system passes through: the directory is another process's now.

        Args:
            path: file or folder concerned.
            what: the operation, as the words after "cannot".
        """
        try:
            yield
        except (OSError, OutputError) as error:
            if isinstance(error, OutputError) and not error.reason:
                raise
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise CheckpointError(
                f"cannot {what} ({reason or error})",
                where=str(path),
                fix="free space or check permissions; the same command resumes from the checkpoint before",
            ) from error
