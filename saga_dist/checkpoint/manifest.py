"""The manifest of a checkpoint: which files it holds, and what proves that they are the ones that were written.

A checkpoint is a folder ``step_00000123/`` with the files of the training state and ``manifest.json``: format, step,
what the caller adds, versions, and size and sha256 of each file. The manifest holds a digest of itself and is compared
byte for byte with its canonical form, so that no flipped byte anywhere goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from saga_dist import __version__
from saga_dist.errors import CheckpointError, DamagedCheckpoint
from saga_dist.utils.atomic_io import file_sha256

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


def folder_name(step: int) -> str:
    """Returns the name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Returns the step whose checkpoint folder has this name; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def seal(step: int, files: Mapping[str, Any], extra: Mapping[str, Any]) -> bytes:
    """Returns the content of ``manifest.json``.

    Args:
        step: optimizer steps done.
        files: per relative name ``{"bytes": size, "sha256": hex}``.
        extra: JSON data of the caller.
    """
    body = {"format": FORMAT, "step": step, "files": files, "extra": extra, "versions": _versions()}
    return _sealed(body)


def parse(raw: bytes, *, folder: str, where: str) -> dict[str, Any]:
    """Returns the body of a manifest after checking its seal.

    Args:
        raw: content of the file.
        folder: name of the folder that it describes.
        where: its path, for errors.

    Raises:
        DamagedCheckpoint: a byte differs from what was written.
        CheckpointError: another format, or of another folder.
    """
    try:
        manifest = json.loads(raw)
        body = {key: value for key, value in manifest.items() if key != "sha256"} if isinstance(manifest, dict) else {}
        intact = _sealed(body) == raw
    except (ValueError, RecursionError) as error:
        raise damaged(where, "not JSON") from error
    if not intact:
        raise damaged(where, "its content does not match its sha256")
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"format {body.get('format')}",
            where=where,
            expected=f"format {FORMAT}",
            fix="read it with the version of saga_dist that wrote it",
        )
    if folder != folder_name(body["step"]):
        raise CheckpointError(f"holds step {body['step']}", where=where, fix="give the folder its own name back")
    outside = [name for name in body["files"] if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:  # a seal is no signature, and a mirror may be written by others
        raise damaged(where, f"lists {outside[0]!r}, which is not inside its folder")
    return body


def verify(path: Path, *, name: str = "") -> CheckpointInfo:
    """Returns the checkpoint in a folder after comparing every file with its hash.

    Args:
        path: the folder.
        name: name that the folder will have; its own by default.

    Raises:
        DamagedCheckpoint: a file is missing or is not what was written; names the file.
        CheckpointError: another format, or a folder with a name that is not its own.
    """
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise damaged(str(file), f"cannot be read ({error.strerror})") from error
    manifest = parse(raw, folder=name or path.name, where=str(file))
    for relative, entry in manifest["files"].items():
        file = path / relative
        try:
            problem = _difference(file, entry)
        except OSError as error:
            raise damaged(str(file), f"cannot be read ({error.strerror})") from error
        if problem:
            raise damaged(str(file), problem)
    return CheckpointInfo(path, manifest["step"], manifest["extra"], manifest["versions"])


def damaged(where: str, problem: str) -> DamagedCheckpoint:
    """Returns the error for a file that is not what was written."""
    return DamagedCheckpoint(f"damaged checkpoint: {problem}", where=where)


def _difference(file: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with a file; empty when it is the one that was written."""
    if not file.is_file():
        return "the file is missing"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"{size} bytes instead of {entry['bytes']}"
    return "" if file_sha256(file) == entry["sha256"] else "its content does not match its sha256"


def _sealed(body: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a manifest with the digest of its own body."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "sha256": digest})


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return (json.dumps(tree, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


@cache
def _versions() -> dict[str, str]:
    versions = {"saga_dist": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
