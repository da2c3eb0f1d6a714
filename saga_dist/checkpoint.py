"""Checkpoints that are either whole or absent, with a hash of every byte.

A checkpoint is a folder ``step_00000123/`` with the files of the training state and ``manifest.json``: format, step,
what the caller adds, versions, and size and sha256 of each file. The manifest holds a digest of itself and is compared
byte for byte with its canonical form, so that no flipped byte anywhere goes unnoticed.

Writing: all files into ``step_N.tmp-<id>/``, fsync each, the manifest, fsync the folders, rename, fsync the parent.
Whatever moment a crash takes, the folders with a plain ``step_N`` name are whole. The small files ``latest`` and
``best`` are for people and tools; the newest checkpoint is the folder with the highest step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saga_dist import __version__
from saga_dist.errors import CheckpointError
from saga_dist.files import file_sha256, fsync_path, write_atomic

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8,})")
_PACKAGES = ("numpy", "safetensors", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint whose every byte was verified."""

    path: Path
    step: int
    extra: Mapping[str, Any]
    """What the caller gave to ``write``, as JSON gives it back."""
    versions: Mapping[str, str]
    """Packages that wrote it."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds ``step_*``, ``latest`` and ``best``; made on the first write.
        keep: how many of the newest checkpoints to keep; the best one stays in any case.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 1:
            raise CheckpointError(f"keep = {keep}", where="checkpoint.keep", expected="at least 1")
        self._folder, self._keep, self._cleaned = Path(folder), keep, False

    def path(self, step: int) -> Path:
        """Returns where the checkpoint of a step lies or would lie."""
        return self._folder / f"step_{step:08d}"

    def has(self, step: int) -> bool:
        """True when the step has a checkpoint (not verified)."""
        return self.path(step).is_dir()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending (not verified)."""
        if not self._folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted(int(match.group(1)) for match, path in found if match and path.is_dir())

    def newest(self) -> CheckpointInfo | None:
        """Returns the newest checkpoint, verified, or None when there is none.

        Raises:
            CheckpointError: it is damaged; the message says which file, and how to fall back to the one before.
        """
        steps = self.steps()
        return verify(self.path(steps[-1])) if steps else None

    def write(
        self,
        step: int,
        write_files: Callable[[Path], None],
        extra: Mapping[str, Any] | None = None,
        *,
        best: int | None = None,
    ) -> Path:
        """Writes the checkpoint of a step, removes those that are no longer kept, and returns its folder.

        A valid checkpoint of the same step is left as it is; a damaged one is replaced.

        Args:
            step: optimizer steps done.
            write_files: writes the training state into the folder that it is given.
            extra: JSON data to keep in the manifest; ``config_digest`` by convention.
            best: step of the best checkpoint so far, which is marked and never removed; None or negative: none.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        final = self.path(step)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clean_once()
            if final.is_dir() and _is_valid(final):
                log.info("%s is there already", final)
            else:
                self._write_new(step, write_files, extra or {})
            write_atomic(self._folder / "latest", f"{self.path(self.steps()[-1]).name}\n".encode())
            if best is not None and best >= 0 and self.has(best):
                write_atomic(self._folder / "best", f"{self.path(best).name}\n".encode())
            self._remove_old(best)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the checkpoint ({error.strerror or error})",
                where=str(final),
                fix="free space or check permissions; the same command resumes from the checkpoint before",
            ) from error
        return final

    def best(self) -> Path | None:
        """Returns the folder marked as best, or None."""
        mark = self._folder / "best"
        name = mark.read_text("utf-8", "replace").strip() if mark.is_file() else ""
        return self._folder / name if _NAME.fullmatch(name) and (self._folder / name).is_dir() else None

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

    def _write_new(self, step: int, write_files: Callable[[Path], None], extra: Mapping[str, Any]) -> None:
        final = self.path(step)
        temporary = self._temporary(final)
        try:
            temporary.mkdir()
            write_files(temporary)
            files = {}
            for path in _files(temporary):
                fsync_path(path)
                files[path.relative_to(temporary).as_posix()] = {
                    "bytes": path.stat().st_size,
                    "sha256": file_sha256(path),
                }
            (temporary / MANIFEST).write_bytes(_manifest(step, files, extra))
            fsync_path(temporary / MANIFEST)
            for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
                fsync_path(folder)
            if final.exists():  # damaged, or it would not be written again
                final.rename(self._temporary(final))
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # there only when something above failed
        fsync_path(self._folder)

    def _remove_old(self, best: int | None) -> None:
        for step in self.steps()[: -self._keep]:
            if step != best and self.path(step) != self.best():
                doomed = self._temporary(self.path(step))
                self.path(step).rename(doomed)  # half a removed folder must not look like a checkpoint
                shutil.rmtree(doomed)

    @staticmethod
    def _temporary(final: Path) -> Path:
        return final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")


def verify(path: Path) -> CheckpointInfo:
    """Returns the checkpoint in a folder after comparing every file with its hash.

    Raises:
        CheckpointError: a file is missing or damaged, or the format is another; names the file and the way out.
    """
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise _damaged(path, file, "the file is missing")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise _damaged(path, file, f"{size} bytes instead of {entry['bytes']}")
        if file_sha256(file) != entry["sha256"]:
            raise _damaged(path, file, "its content does not match its sha256")
    return CheckpointInfo(path, manifest["step"], manifest["extra"], manifest["versions"])


def _is_valid(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError as error:
        log.warning("replacing a damaged checkpoint: %s", error)
        return False
    return True


def _manifest(step: int, files: Mapping[str, Any], extra: Mapping[str, Any]) -> bytes:
    body = {"format": FORMAT, "step": step, "files": files, "extra": extra, "versions": _versions()}
    return _seal(body)


def _seal(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a manifest with the digest of its own body."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "sha256": digest})


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(tree, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
        manifest = json.loads(raw)
        body = {key: value for key, value in manifest.items() if key != "sha256"} if isinstance(manifest, dict) else {}
        intact = _seal(body) == raw
    except OSError as error:
        raise _damaged(path, file, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, file, "not JSON") from error
    if not intact:
        raise _damaged(path, file, "its content does not match its sha256")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"format {body.get('format')}",
            where=str(file),
            expected=f"format {FORMAT}",
            fix="read it with the version of saga_dist that wrote it",
        )
    if path.name != f"step_{body['step']:08d}":
        raise CheckpointError(f"holds step {body['step']}", where=str(path), fix="give the folder its own name back")
    return body


def _damaged(folder: Path, file: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"damaged checkpoint: {problem}",
        where=str(file),
        fix=f"delete the folder {folder.name} to fall back to the checkpoint before it",
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError("not a plain file", where=str(path), expected="files and folders only")
        if path.is_file():
            yield path


@cache
def _versions() -> dict[str, str]:
    versions = {"saga_dist": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
