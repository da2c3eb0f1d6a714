"""The checkpoints of one run: whole or absent at every moment, the newest valid one found again by itself.

Folders with a plain ``step_N`` name are whole. The small files ``latest`` and ``best`` are for people and tools; the
newest checkpoint is the folder with the highest step.

A damaged folder is renamed to ``step_N.damaged-<id>``, never deleted, and the one before it is taken; with a
mirror, its newest valid copy when this disk has none. Only when there are checkpoints and none is valid, it is an
error: starting afresh is then for a person to decide.
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
from saga_dist.errors import CheckpointError, DamagedCheckpoint
from saga_dist.utils.atomic_io import crash_point, fsync_path, write_atomic

log = logging.getLogger(__name__)

_LOST = "restore it from a copy, or choose a new --run-dir"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds ``step_*``, ``latest`` and ``best``; made on the first write.
        keep: how many of the newest checkpoints to keep; the best one stays in any case.
        mirror: where every committed checkpoint is copied to; None: nowhere.
    """

    def __init__(self, folder: Path, keep: int, mirror: CheckpointMirror | None = None) -> None:
        if keep < 1:
            raise CheckpointError(f"keep = {keep}", where="checkpoint.keep", expected="at least 1")
        self._folder, self._keep, self._mirror, self._cleaned = Path(folder), keep, mirror, False
        self._trouble: dict[str, float] = {}
        self._damaged_copies: set[int] = set()

    # ------------------------------------------------------------------ what is there

    def path(self, step: int) -> Path:
        """Returns where the checkpoint of a step lies or would lie."""
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
        """Returns the folder marked as best, or None."""
        mark = self._folder / "best"
        name = mark.read_text("utf-8", "replace").strip() if mark.is_file() else ""
        return self._folder / name if step_of(name) is not None and (self._folder / name).is_dir() else None

    def metrics(self) -> dict[str, float]:
        """Returns the trouble since the last call: saves that failed, copies that the mirror did not take."""
        trouble, self._trouble = self._trouble, {}
        return trouble

    # ------------------------------------------------------------------ reading

    def newest(self) -> CheckpointInfo | None:
        """Returns the newest valid checkpoint, or None when there is none at all.

        For the process that writes, at its start. Damaged ones that are newer are set aside with a warning. When this
        disk has no valid one, the newest valid copy of the mirror is brought here.

        Raises:
            CheckpointError: there are checkpoints, but none is valid, or the newest is of another format; or the mirror
                does not answer and this disk has none.
        """
        with self._explained(self._folder, "remove what a crash left"):
            self._clean_once()
        problems: dict[int, DamagedCheckpoint] = {}
        for step in reversed(self.steps()):
            try:
                info = verify(self.path(step))
            except DamagedCheckpoint as error:
                problems[step] = error
                continue
            for damaged, problem in problems.items():
                self._set_aside(damaged, problem, instead=step)
            return info
        copies = self._mirror.steps() if self._mirror is not None else []
        copy = self._bring(list(reversed(copies)), problems)
        if copy is None and (problems or copies):
            raise CheckpointError(
                "no checkpoint is valid" + (f"; the newest: {next(iter(problems.values()))}" if problems else ""),
                where=str(self._folder if problems else self._mirror),
                fix="restore a step_* folder from a copy, or choose a new --run-dir",
            )
        return copy

    def verified(self, step: int) -> CheckpointInfo:
        """Returns the checkpoint of one step, from the mirror when it is not valid here.

        Raises:
            CheckpointError: it is in neither place, or damaged.
        """
        try:
            return verify(self.path(step))
        except DamagedCheckpoint as error:
            copy = self._bring([step], {step: error} if self.has(step) else {})
            if copy is None:
                raise CheckpointError(str(error), fix=_LOST) from error
            return copy

    def _bring(self, steps: Sequence[int], problems: Mapping[int, DamagedCheckpoint]) -> CheckpointInfo | None:
        """Downloads the first valid copy among ``steps``; None without any. Sets aside what is damaged here."""
        if self._mirror is None:
            return None
        for step in steps:
            temporary = temporary_beside(self.path(step))
            with self._explained(self.path(step), "bring the checkpoint from the mirror"):
                try:
                    self._mirror.download(step, temporary)
                    verify(temporary, name=folder_name(step))
                except DamagedCheckpoint as error:
                    log.warning("the copy of step %d is passed over: %s", step, error)
                    self._damaged_copies.add(step)
                    continue
                else:
                    for damaged, problem in problems.items():
                        self._set_aside(damaged, problem, instead=step)
                    crash_point("downloaded", self.path(step))
                    temporary.rename(self.path(step))
                    fsync_path(self._folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            log.warning("the checkpoint of step %d was brought from %s", step, self._mirror)
            return verify(self.path(step))
        return None

    def _set_aside(self, step: int, problem: DamagedCheckpoint, *, instead: int | None = None) -> None:
        path = self.path(step)
        aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
        log.warning(
            "%s; set aside as %s%s", problem, aside.name, "" if instead is None else f"; step {instead} is used instead"
        )
        with self._explained(path, "set the damaged checkpoint aside"):
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
        """Writes the checkpoint of a step, removes those that are no longer kept, copies it to the mirror.

        A valid checkpoint of the same step is left as it is; a damaged one is set aside. Returns its folder.

        Args:
            step: optimizer steps done.
            write_files: writes the training state into the folder that it is given.
            extra: JSON data to keep in the manifest; ``config_digest`` by convention.
            best: step of the best checkpoint so far, which is marked and never removed; None or negative: none.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        final = self.path(step)
        with self._explained(final, "write the checkpoint"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clean_once()
            if final.is_dir() and self._is_valid(step):
                log.info("%s is there already", final)
            else:
                write_folder(final, step, write_files, extra or {})
        self.settle(step, best=best)
        return final

    def try_write(
        self,
        step: int,
        write_files: Callable[[Path], None],
        extra: Mapping[str, Any] | None = None,
        *,
        best: int | None = None,
    ) -> bool:
        """Writes a checkpoint that a run can do without: a failure is warned of and counted, and False is returned.

        Raises:
            CheckpointError: it cannot be written, and there is no valid earlier one to resume from.
        """
        try:
            self.write(step, write_files, extra, best=best)
        except CheckpointError as error:
            if not any(self._is_valid(earlier) for earlier in reversed(self.steps())):
                raise
            self._trouble["checkpoint/failed"] = self._trouble.get("checkpoint/failed", 0.0) + 1
            log.warning("%s; training goes on, the next save that is due tries again", error)
        return self.has(step)

    def settle(self, step: int, *, best: int | None) -> None:
        """Does what follows a commit, or what a crash kept from following it: points ``latest`` and ``best``, removes
        what is no longer kept, and copies the step and the best one to the mirror.

        Trouble with the mirror is warned of and counted, no more.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        with self._explained(self.path(step), "tidy up after the checkpoint"):
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
                    mirror.upload(self.path(wanted), afresh=wanted in self._damaged_copies)
                    self._damaged_copies.discard(wanted)
            mirror.retain(step, best=best)
        except (CheckpointError, OSError) as error:
            name = "checkpoint/mirror_failed"
            self._trouble[name] = self._trouble.get(name, 0.0) + 1
            log.warning("the mirror did not take step %d, the local checkpoint is there: %s", step, error)

    def clean(self) -> None:
        """Removes what crashed writes left behind. Only for the process that writes."""
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
                self.path(step).rename(doomed)  # half a removed folder must not look like a checkpoint
                crash_point("doomed", self.path(step))
                shutil.rmtree(doomed)
                crash_point("removed", self.path(step))

    def _is_valid(self, step: int) -> bool:
        """True when the step's checkpoint is valid; a damaged one is set aside."""
        try:
            verify(self.path(step))
        except DamagedCheckpoint as error:
            self._set_aside(step, error)
            return False
        return True

    @contextmanager
    def _explained(self, path: Path, what: str) -> Iterator[None]:
        """Turns what the disk refuses into one line."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot {what} ({error.strerror or error})",
                where=str(path),
                fix="free space or check permissions; the same command resumes from the checkpoint before",
            ) from error
