"""``manifest.json``: sha256 and size of every file of a folder of weights, checked before the folder is read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from saga_dist.errors import CheckpointError
from saga_dist.utils.atomic_io import file_sha256
from saga_dist.utils.output_files import write_file

MANIFEST_NAME = "manifest.json"
WEIGHT_SUFFIXES = (".bin", ".data", ".onnx", ".pt", ".pth", ".safetensors")
"""Suffixes of files with weights, which must not be in a folder unless its manifest lists them."""


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Writes the manifest of some files of a folder.

    Args:
        folder: the folder.
        names: names of the files in it.

    Raises:
        OSError: a file cannot be read.
        OutputError: the manifest cannot be written.
    """
    files = {name: folder / name for name in sorted(names)}
    manifest = {
        "sha256": {name: file_sha256(path) for name, path in files.items()},
        "size_bytes": {name: path.stat().st_size for name, path in files.items()},
    }
    write_file(folder / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")


def check_manifest(folder: Path, *, required: Collection[str], writer: str) -> None:
    """Checks every file that a folder's manifest lists, and that no other file with weights is there.

    Args:
        folder: the folder.
        required: names of files that the manifest must list.
        writer: what wrote the folder, for errors.

    Raises:
        CheckpointError: the manifest cannot be used; or a file is missing, altered or not listed.
    """
    path = folder / MANIFEST_NAME
    manifest = read_json_object(path, expected=writer)
    digests, sizes = manifest.get("sha256"), manifest.get("size_bytes", {})  # version 0.1.0 wrote no sizes
    if not isinstance(digests, dict) or not isinstance(sizes, dict) or not set(required) <= set(digests):
        raise CheckpointError(f"does not list {', '.join(required)}", where=str(path), expected=writer)
    for name, digest in digests.items():
        _check_file(folder, name, digest, sizes.get(name))
    for file in sorted(folder.iterdir()):
        if file.suffix in WEIGHT_SUFFIXES and file.name not in digests:
            raise CheckpointError(
                f"is not listed in {MANIFEST_NAME}", where=str(file), fix="export the encoder again, or remove the file"
            )


def _check_file(folder: Path, name: str, digest: object, size: object) -> None:
    """Checks one file; the size first, because it needs no reading and shows a copy that was cut off."""
    file, fix = folder / name, "copy the whole folder again"
    if Path(name).name != name:
        raise CheckpointError(f"lists {name!r}", where=str(folder / MANIFEST_NAME), expected="names without folders")
    try:
        if not file.is_file():
            raise CheckpointError("is missing", where=str(file), fix=fix)
        if size is not None and (found := file.stat().st_size) != size:
            raise CheckpointError(f"has {found} bytes", where=str(file), expected=f"{size}", fix=fix)
        if (sha256 := file_sha256(file)) != digest:
            raise CheckpointError(
                f"was altered (sha256 {sha256[:12]})", where=str(file), expected=f"{digest}"[:12], fix=fix
            )
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=str(file), fix=fix) from error


def read_json_object(path: Path, *, expected: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
        path: the file.
        expected: what the file's folder should be, for the error.

    Raises:
        CheckpointError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot be read ({reason})", where=str(path), expected=expected) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object")
    return content
