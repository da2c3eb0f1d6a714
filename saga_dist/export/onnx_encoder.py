"""Runs an encoder that was exported to ONNX, with onnxruntime, numpy and Pillow, without torch.

The folder holds:

model.onnx                 images uint8 [B, S, S, 3] -> embeddings float32 [B, E]; scaling and normalising are inside
config.json                configuration of the encoder
preprocessor_config.json   settings of the preprocessing
model.onnx.data            weights, where they are too large for the graph's own file (above 1.5 GB)
manifest.json              sha256 and size of these files
README.md                  model card
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga_dist.data.image_input import encode_images
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.models.encoder_folder import CONFIG_NAME, GRAPH_NAME, PREPROCESSING_NAME
from saga_dist.utils.file_manifest import check_manifest

if TYPE_CHECKING:
    from saga_dist.data.image_input import Images

CONTENT = (GRAPH_NAME, CONFIG_NAME, PREPROCESSING_NAME)
"""Files that every export has, besides its manifest."""


class OnnxEncoder:
    """An encoder exported to ONNX, on the CPU.

    Args:
        folder: folder written by ``saga-dist export --format onnx``.

    Raises:
        CheckpointError: a file is missing or altered or cannot be read, or the manifest does not list some weights.
        ConfigError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package(error) from error
        folder = Path(folder)
        check_manifest(folder, required=CONTENT, writer="what `saga-dist export --format onnx` wrote")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        graph = str(folder / GRAPH_NAME)
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many exceptions, without a base of their own
            reason = " ".join(str(error).split())
            raise CheckpointError(f"cannot be read ({reason})", where=graph, expected="an ONNX graph") from error
        self.image_size = int(self._session.get_inputs()[0].shape[1])
        """S, side of the square input in pixels."""
        self.embedding_dim = int(self._session.get_outputs()[0].shape[1])
        """E, width of an embedding."""

    def encode(self, images: Images, *, batch_size: int = 64) -> np.ndarray:
        """Returns embeddings float32, l2-normalised: [E] of a single image, [I, E] of several.

        Args:
            images: one image or several, as the table in ``data.image_input`` lists them; each is rotated upright by
                its EXIF orientation, converted to RGB and resized to the square.
            batch_size: images per call of the graph, at least 1.

        Raises:
            DataError: an image cannot be read or is no image, or ``batch_size`` is less than 1.
        """
        return encode_images(images, self._embed, size=self.image_size, width=self.embedding_dim, batch_size=batch_size)

    def _embed(self, images: list[np.ndarray]) -> np.ndarray:
        """Returns embeddings float32 [I, E] of uint8 images [S, S, 3]."""
        (embeddings_IE,) = self._session.run(None, {"images": np.stack(images)})
        found: np.ndarray = embeddings_IE
        return found


def missing_package(error: ImportError) -> ConfigError:
    """Returns the error that names a missing package and the command that installs it."""
    return ConfigError(f"needs the package {error.name}", where="export", fix="pip install 'saga-dist[export]'")
