"""The encoder as the only module of a sentence-transformers model; needs that package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from saga_dist.data.image_input import square_image_of
from saga_dist.errors import CheckpointError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families.base import PixelBatch


class SagaEncoder(InputModule):
    """A sentence-transformers module that turns images into l2-normalised embeddings.

    The folder of the module is that of an encoder, which ``saga_dist.load`` reads as well.

    Args:
        encoder: tower and pooler.
    """

    save_in_root: bool = True
    """Read by sentence-transformers: the module is saved in the model's folder itself, not in a sub-folder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        """Tower and pooler."""

    @property
    def modalities(self) -> list[Any]:
        """Kinds of input that ``encode`` accepts: images only."""
        return ["image"]

    def get_embedding_dimension(self) -> int:
        """Returns E, the width of an embedding."""
        return self.encoder.embedding_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Returns the features that ``forward`` takes: ``pixel_values``, ``grids`` and ``lengths``.

        Args:
            inputs: images, as the table in ``data.image_input`` lists them. ``SentenceTransformer.encode`` itself
                decides what a batch is, a list or a tuple, and refuses matrices, which it takes for sound.
            prompt: ignored; part of the interface.

        Raises:
            DataError: an image cannot be read, or an input is not an image.
        """
        size = self.encoder.image_size
        squares = [square_image_of(image, size, where=f"image {index}") for index, image in enumerate(inputs)]
        pixels = self.encoder.tower.preprocess(squares)
        return {"pixel_values": pixels.pixel_values, "grids": pixels.grids, "lengths": pixels.lengths}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the features with ``sentence_embedding`` [I, E] float32."""
        batch = PixelBatch(features["pixel_values"], features["grids"], features["lengths"])
        main_ND = self.encoder.tower.layout.main(self.encoder.tower(batch))
        features["sentence_embedding"] = self.encoder.pooler(main_ND.split(list(batch.lengths))).embeddings_IE
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the encoder into the folder ``output_path``."""
        self.encoder.save(output_path)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> SagaEncoder:
        """Returns the module in a local folder.

        Args:
            model_name_or_path: local folder; hub names are not supported.
            subfolder: sub-folder of the encoder.
            model_kwargs: as ``SentenceTransformer(folder, model_kwargs=...)`` takes them; ``family`` is the import path
                of a model family that is not built in.
            kwargs: other arguments of sentence-transformers, which are ignored.

        Raises:
            CheckpointError: there is no such folder, or the encoder in it is damaged.
        """
        folder = Path(model_name_or_path, subfolder)
        if not folder.is_dir():
            raise CheckpointError("no such folder", where=str(folder), fix="download the model and give its folder")
        return cls(load(folder, family=(model_kwargs or {}).get("family", "")))


def load_model(folder: str | Path, *, device: str | None = None, family: str = "") -> SentenceTransformer:
    """Returns the ``SentenceTransformer`` of an exported folder; no name in the folder decides which code runs.

    From version 6 on, ``SentenceTransformer(folder)`` imports the module that the folder names only with
    ``trust_remote_code``, which also runs Python files of the folder. This function needs no such trust.

    Args:
        folder: folder that ``saga-dist export --format sentence-transformers`` or ``--format hf`` wrote.
        device: device of the weights; None for the one that sentence-transformers chooses.
        family: import path of the model family, where it is not built in.

    Raises:
        CheckpointError: there is no such folder, or the encoder in it is damaged.
    """
    module = SagaEncoder.load(str(folder), model_kwargs={"family": family})
    return SentenceTransformer(modules=[module], device=device, similarity_fn_name="cosine")
