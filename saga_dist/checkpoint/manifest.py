"""The manifest of a checkpoint: the list of its files, each with size and sha256.

A checkpoint is a folder ``step_00000123/`` with the files of the training state and ``manifest.json``: format, step,
extra data of the caller, package versions, and size and sha256 of each file. The manifest holds a digest of itself and
is compared byte for byte with its canonical form, so that any flipped byte is detected.
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
    """Folder of the checkpoint."""
    step: int
    """Number of optimizer steps done, at least 0."""
    extra: Mapping[str, Any]
    """Data that the caller passed to ``CheckpointStore.write``, after a round trip through JSON."""
    versions: Mapping[str, str]
    """Version of each package that wrote the checkpoint: saga_dist, numpy, safetensors, torch, transformers."""


def folder_name(step: int) -> str:
    """Returns the folder name of a step's checkpoint, ``step_`` and at least eight digits."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Returns the step of a checkpoint folder from its name; None when the name is not of that form."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def seal(step: int, files: Mapping[str, Any], extra: Mapping[str, Any]) -> bytes:
    """Returns the content of ``manifest.json``.

    Args:
        step: number of optimizer steps done.
        files: ``{"bytes": size, "sha256": hex}`` for each file name relative to the folder.
        extra: JSON data of the caller.
    """
    body = {"format": FORMAT, "step": step, "files": files, "extra": extra, "versions": _versions()}
    return _sealed(body)


def parse(raw: bytes, *, folder: str, where: str) -> dict[str, Any]:
    """Returns the body of a manifest after checking its digest.

    Args:
        raw: content of the manifest file.
        folder: name of the checkpoint folder that the manifest must describe.
        where: path of the manifest, for error messages.

    Raises:
        DamagedCheckpoint: a byte differs from what was written, or a listed file is outside the folder.
        CheckpointError: the manifest has another format or describes another folder.
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
    if outside:  # the digest is not a signature, and others may be able to write to a mirror
        raise damaged(where, f"lists {outside[0]!r}, which is not inside its folder")
    return body


def verify(path: Path, *, name: str = "") -> CheckpointInfo:
    """Returns the checkpoint in a folder after comparing every file with its hash.

    Args:
        path: folder of the checkpoint.
        name: name that the folder must have according to the manifest; empty: the folder's present name.

    Raises:
        DamagedCheckpoint: a file is missing or is not what was written; the error names the file.
        CheckpointError: the manifest has another format or describes another folder.
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
    """Returns the error for a file that is missing or differs from what was written.

    Args:
        where: path of the file.
        problem: description of the damage.
    """
    return DamagedCheckpoint(f"damaged checkpoint: {problem}", where=where)


def _difference(file: Path, entry: Mapping[str, Any]) -> str:
    """Returns the difference between a file and its manifest entry as text; empty when they agree."""
    if not file.is_file():
        return "the file is missing"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"{size} bytes instead of {entry['bytes']}"
    return "" if file_sha256(file) == entry["sha256"] else "its content does not match its sha256"


def _sealed(body: Mapping[str, Any]) -> bytes:
    """Returns canonical JSON of a manifest with the sha256 of its own body added."""
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
