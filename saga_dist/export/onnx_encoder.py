"""Runs an encoder that was exported to ONNX, with onnxruntime, numpy and Pillow, without torch.

The folder holds:

model.onnx                 images uint8 [B, S, S, 3] -> embeddings float32 [B, E]; scaling and normalising are inside
config.json                configuration of the encoder
preprocessor_config.json   settings of the preprocessing
manifest.json              sha256 of these three files
README.md                  model card
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga_dist.data.images import read_image, square_image
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.utils.atomic_io import sha256_of_input

if TYPE_CHECKING:
    from PIL.Image import Image

GRAPH_NAME, MANIFEST_NAME = "model.onnx", "manifest.json"
CONTENT = (GRAPH_NAME, "config.json", "preprocessor_config.json")


class OnnxEncoder:
    """An encoder exported to ONNX, on the CPU.

    Args:
        folder: folder written by ``saga-dist export --format onnx``.

    Raises:
        CheckpointError: a file is missing or altered.
        ConfigError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package(error) from error
        folder = Path(folder)
        _verify(folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / GRAPH_NAME), options, providers=["CPUExecutionProvider"]
        )
        self.image_size = int(self._session.get_inputs()[0].shape[1])
        """S, side of the square input in pixels."""
        self.embedding_dim = int(self._session.get_outputs()[0].shape[1])
        """E, width of an embedding."""

    def encode(self, images: Sequence[Image | np.ndarray | str | Path], *, batch_size: int = 64) -> np.ndarray:
        """Returns embeddings [I, E] float32, l2-normalised.

        Args:
            images: PIL images, uint8 arrays [height, width, 3], or paths; each is rotated upright by its EXIF
                orientation, converted to RGB and resized to the square.
            batch_size: number of images per call of the graph.

        Raises:
            DataError: an image cannot be read.
        """
        if not images:
            return np.zeros((0, self.embedding_dim), np.float32)
        parts = []
        for start in range(0, len(images), batch_size):
            squares = [_square(image, self.image_size) for image in images[start : start + batch_size]]
            (embeddings_IE,) = self._session.run(None, {"images": np.stack(squares)})
            parts.append(embeddings_IE)
        return np.concatenate(parts)


def missing_package(error: ImportError) -> ConfigError:
    """Returns the error that names a missing package and the command that installs it."""
    return ConfigError(f"needs the package {error.name}", where="export", fix="pip install 'saga-dist[export]'")


def _square(image: Image | np.ndarray | str | Path, size: int) -> np.ndarray:
    from PIL import Image as Images

    if isinstance(image, str | Path):
        return read_image(image, size)
    return square_image(Images.fromarray(image) if isinstance(image, np.ndarray) else image, size)


def _verify(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    try:
        digests = json.loads(path.read_text("utf-8"))["sha256"]
        digests = {name: digests[name] for name in CONTENT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot be read ({error})", where=str(path), expected="what `saga-dist export --format onnx` wrote"
        ) from error
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file() or sha256_of_input(file) != digest:
            raise CheckpointError(
                "is missing or was altered", where=str(file), expected=str(digest)[:12], fix="copy the folder again"
            )
