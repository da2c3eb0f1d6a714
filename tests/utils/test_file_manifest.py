"""A folder of weights is read only if it holds what its manifest lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist.errors import CheckpointError
from saga_dist.utils.file_manifest import check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(bytes(range(50)))
    (tmp_path / "model.onnx.data").write_bytes(bytes(range(100)))
    write_manifest(tmp_path, ["config.json", "model.onnx", "model.onnx.data"])
    (tmp_path / "README.md").write_text("a card, which may be edited")
    return tmp_path


def check(folder: Path) -> None:
    check_manifest(folder, required=("config.json", "model.onnx"), writer="an export")


def zero(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(bytes(100))


def cut(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(bytes(range(99)))


def lose(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def add(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"weights")


def unlist(folder: Path) -> None:
    write_manifest(folder, ["config.json", "model.onnx"])


def list_another_folder(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["../secret"] = ""
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_folder_passes_with_or_without_sizes(folder: Path) -> None:
    check(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("size_bytes") == {"config.json": 2, "model.onnx": 50, "model.onnx.data": 100}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    check(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zero, r"model.onnx.data: was altered \(sha256 \w{12}\); expected \w{12}; copy the whole folder again"),
        (cut, r"model.onnx.data: has 99 bytes; expected 100"),
        (lose, r"model.onnx.data: is missing"),
        (add, r"other.safetensors: is not listed in manifest.json"),
        (unlist, r"model.onnx.data: is not listed in manifest.json"),
        (list_another_folder, r"lists '../secret'; expected names without folders"),
    ],
)
def test_damage_is_one_line_that_names_the_file(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        check(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": []}', '{"sha256": {"config.json": ""}}'])
def test_a_manifest_that_cannot_be_used_is_named(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*expected (an export|a JSON object)"):
        check(folder)
