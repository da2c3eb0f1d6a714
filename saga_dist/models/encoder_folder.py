"""The folder of a saved encoder: its files, and how a path given by a user leads to it; imports no torch.

    config.json                format version, family, vision and pooler configuration, image size, package versions
    model.safetensors          weights, ``tower.*`` and ``pooler.*``
    preprocessor_config.json   preprocessing, in the family's own format
    manifest.json              sha256 and size of each file

Every command and ``saga_dist.load`` take such a folder or a run directory, which has one in ``model/``.
"""

from __future__ import annotations

from pathlib import Path

from saga_dist.errors import CheckpointError
from saga_dist.utils.file_manifest import MANIFEST_NAME

CONFIG_NAME, WEIGHTS_NAME, PREPROCESSING_NAME = "config.json", "model.safetensors", "preprocessor_config.json"
CONTENT = (CONFIG_NAME, WEIGHTS_NAME, PREPROCESSING_NAME)
"""Files that every saved encoder has, besides its manifest."""
MODEL_FOLDER = "model"
"""Folder of the encoder in a run directory."""
GRAPH_NAME = "model.onnx"
"""Graph of an encoder that was exported to ONNX; such a folder has no ``WEIGHTS_NAME``."""


def encoder_folder(path: str | Path) -> Path:
    """Returns the folder of a saved encoder: ``model/`` of a run directory, else ``path`` itself.

    Args:
        path: run directory, or the folder of an encoder; ``~`` is expanded.

    Raises:
        CheckpointError: there is no saved encoder.
    """
    given = Path(path).expanduser()
    for folder in (given / MODEL_FOLDER, given):
        if _is_encoder(folder):
            return folder
    raise CheckpointError(
        "holds no saved encoder" if given.is_dir() else "no such folder",
        where=str(path),
        expected="a run directory with model/, or an encoder's own folder",
        fix=_advice(given),
    )


def _is_encoder(folder: Path) -> bool:
    """Returns True for a folder that ``Encoder.save`` wrote, also when one of its files is lost."""
    has_content = (folder / WEIGHTS_NAME).is_file() or (folder / PREPROCESSING_NAME).is_file()
    return has_content and (folder / MANIFEST_NAME).is_file() and not (folder / GRAPH_NAME).is_file()


def _advice(path: Path) -> str:
    """Returns what to do about a path that leads to no saved encoder."""
    if (path / GRAPH_NAME).is_file():
        return "read this ONNX export with saga_dist.export.onnx_encoder.OnnxEncoder"
    if (path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file():
        return f"copy the whole folder again, with its {MANIFEST_NAME}"
    return "check the path, or wait for the run to finish"
