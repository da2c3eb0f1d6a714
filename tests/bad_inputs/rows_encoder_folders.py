"""Folders of encoders, their exports and what searches them: damaged, incomplete, or not what they seem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.row import BadInput, Workspace
from bad_inputs.rows_images import encoder

import saga_dist
from saga_dist.utils.file_manifest import write_manifest


def damaged(damage: Callable[[Path], Any]) -> Callable[[Workspace], None]:
    """Saves an encoder in the folder ``encoder`` and damages it."""

    def prepare(workspace: Workspace) -> None:
        encoder(workspace.model).save(workspace.folder / "encoder")
        damage(workspace.folder / "encoder")

    return prepare


def rewrite(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A damage that changes the object of a JSON file, of which the manifest then has the new hash."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        if name != "manifest.json":
            write_manifest(folder, ["config.json", "model.safetensors", "preprocessor_config.json"])

    return damage


def zero_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4000] + bytes(4000))


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no tensors")
    write_manifest(folder, ["config.json", "model.safetensors", "preprocessor_config.json"])


def onnx_export(workspace: Workspace) -> Path:
    """Writes a folder as ``export --format onnx`` does, with a graph that is none."""
    folder = workspace.folder / "onnx"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.onnx").write_bytes(b"no graph")
    write_manifest(folder, ["config.json", "model.onnx", "preprocessor_config.json"])
    return folder


def read_onnx(workspace: Workspace) -> Any:
    from saga_dist.export.onnx_encoder import OnnxEncoder

    return OnnxEncoder(workspace.folder / "onnx")


def load(workspace: Workspace, **options: Any) -> Any:
    return saga_dist.load(workspace.folder / "encoder", **options)


def with_external_weights(workspace: Workspace) -> None:
    (onnx_export(workspace) / "model.onnx.data").write_bytes(bytes(60_000))


def unfinished_run(workspace: Workspace) -> None:
    (workspace.folder / "encoder").mkdir()
    (workspace.folder / "encoder" / "config.json").write_text("{}")


def whole(folder: Path) -> None:
    """Damages nothing."""


ROWS = [
    BadInput("an encoder without a manifest", "manifest of an encoder", load,
             ("encoder: holds no saved encoder", "manifest.json"),
             damaged(lambda folder: (folder / "manifest.json").unlink())),
    BadInput("a manifest that is cut off", "manifest of an encoder", load, ("manifest.json: cannot be read",),
             damaged(lambda folder: (folder / "manifest.json").write_text('{"sha256": {'))),
    BadInput("a manifest that is a list", "manifest of an encoder", load,
             ("manifest.json: holds a list", "a JSON object"),
             damaged(lambda folder: (folder / "manifest.json").write_text("[]"))),
    BadInput("a manifest that leaves the weights out", "manifest of an encoder", load,
             ("manifest.json: does not list", "model.safetensors"),
             damaged(rewrite("manifest.json", lambda content: content["sha256"].pop("model.safetensors")))),
    BadInput("a manifest that names a file elsewhere", "manifest of an encoder", load,
             ("lists '../secret'", "names without folders"),
             damaged(rewrite("manifest.json", lambda content: content["sha256"].update({"../secret": ""})))),
    BadInput("weights that are set to zero", "weights of an encoder", load,
             ("model.safetensors: was altered", "copy the whole folder again"), damaged(zero_weights)),
    BadInput("weights that are cut off", "weights of an encoder", load, ("model.safetensors: has 100 bytes; expected",),
             damaged(lambda folder: (folder / "model.safetensors").write_bytes(bytes(100)))),
    BadInput("weights that are gone", "weights of an encoder", load, ("model.safetensors: is missing",),
             damaged(lambda folder: (folder / "model.safetensors").unlink())),
    BadInput("weights that are no tensors", "weights of an encoder", load,
             ("model.safetensors: cannot be read", "expected safetensors"), damaged(no_weights)),
    BadInput("further weights that the manifest does not list", "weights of an encoder", load,
             ("model-00002.safetensors: is not listed in manifest.json",),
             damaged(lambda folder: (folder / "model-00002.safetensors").write_bytes(b"weights"))),
    BadInput("an encoder of a later version", "configuration of an encoder", load, ("format version 9; expected 1",),
             damaged(rewrite("config.json", lambda content: content.update(format_version=9)))),
    BadInput("an encoder of a family that is unknown", "configuration of an encoder", load,
             ("model family 'other' is not supported",),
             damaged(rewrite("config.json", lambda content: content.update(family="other")))),
    BadInput("an encoder of a dtype that is unknown", "configuration of an encoder", load,
             ("config.json: the configuration cannot be used",),
             damaged(rewrite("config.json", lambda content: content.update(dtype="float31")))),
    BadInput("an encoder without the pooler's settings", "configuration of an encoder", load,
             ("config.json: the configuration cannot be used", "pooler"),
             damaged(rewrite("config.json", lambda content: content.pop("pooler")))),
    BadInput("a run that has not written its encoder", "place of an encoder", load,
             ("encoder: holds no saved encoder", "a run directory with model/", "wait for the run"), unfinished_run),
    BadInput("a folder that is not there", "place of an encoder", load, ("encoder: no such folder",)),
    BadInput("a checkpoint of an MLLM in place of an encoder", "place of an encoder",
             lambda workspace: saga_dist.load(workspace.model), ("holds no saved encoder",)),
    BadInput("an ONNX export in place of an encoder", "place of an encoder",
             lambda workspace: saga_dist.load(onnx_export(workspace)), ("OnnxEncoder",)),
    BadInput("a path to embed with that leads nowhere", "place of an encoder", "embed elsewhere . --out a.arrow",
             ("elsewhere: no such folder", "a run directory with model/")),
    BadInput("a device of another name", "device and dtype", lambda workspace: load(workspace, device="gpu"),
             ("device = 'gpu' cannot be used", "cpu, cuda or cuda:N"), damaged(whole)),
    BadInput("a device that has no memory", "device and dtype", lambda workspace: load(workspace, device="meta"),
             ("device = 'meta' cannot be used",), damaged(whole)),
    BadInput("a dtype that holds no weights", "device and dtype", lambda workspace: load(workspace, dtype="int8"),
             ("dtype = 'int8'; expected float32",), damaged(whole)),
    BadInput("a graph that is none", "ONNX export", read_onnx, ("model.onnx: cannot be read", "an ONNX graph"),
             onnx_export),
    BadInput("external weights that the manifest does not list", "ONNX export", read_onnx,
             ("model.onnx.data: is not listed in manifest.json", "export the encoder again"), with_external_weights),
    BadInput("a folder of something else in place of an ONNX export", "ONNX export", read_onnx,
             ("manifest.json: cannot be read", "saga-dist export --format onnx"),
             lambda workspace: (workspace.folder / "onnx").mkdir()),
]  # fmt: skip
