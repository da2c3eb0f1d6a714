"""The encoder as the one module of a sentence-transformers model; needs that package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule

from saga_dist.data.images import read_image, square_image
from saga_dist.errors import CheckpointError, DataError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families.base import PixelBatch


class SagaEncoder(InputModule):
    """Images to l2-normalised embeddings. Its folder is an encoder's own: ``saga_dist.load`` reads it as well.

    Args:
        encoder: tower and pooler.
    """

    save_in_root: bool = True

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def modalities(self) -> list[Any]:
        """What ``encode`` takes."""
        return ["image"]

    def get_embedding_dimension(self) -> int:
        """Returns E."""
        return self.encoder.embedding_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Returns pixels and patch grids of PIL images, uint8 arrays [height, width, 3], or paths.

        Raises:
            DataError: an image cannot be read, or it is no image.
        """
        pixels = self.encoder.tower.preprocess([_square(image, self.encoder.image_size) for image in inputs])
        return {"pixel_values": pixels.pixel_values, "grids": pixels.grids, "lengths": pixels.lengths}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the features with ``sentence_embedding`` [I, E] float32."""
        batch = PixelBatch(features["pixel_values"], features["grids"], features["lengths"])
        main_ND = self.encoder.tower.layout.main(self.encoder.tower(batch))
        features["sentence_embedding"] = self.encoder.pooler(main_ND.split(list(batch.lengths))).embeddings_IE
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the encoder's own folder."""
        self.encoder.save(output_path)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> SagaEncoder:
        """Returns the module in a folder on this machine.

        Args:
            model_name_or_path: the folder.
            subfolder: of the encoder in it.
            model_kwargs: as ``SentenceTransformer(folder, model_kwargs=...)`` takes them; ``family`` is the import path
                of a model family that is not built in.
            kwargs: of other modules; not used.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        folder = Path(model_name_or_path, subfolder)
        if not folder.is_dir():
            raise CheckpointError("no such folder", where=str(folder), fix="download the model and give its folder")
        return cls(load(folder, family=(model_kwargs or {}).get("family", "")))


def _square(image: Any, size: int) -> np.ndarray:
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image, size)
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise DataError(
            f"a {type(image).__name__}", where="images", expected="PIL images, paths, or uint8 [height, width, 3]"
        )
    return square_image(image, size)
