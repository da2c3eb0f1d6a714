"""The deployable encoder: tower and pooler, without any language model.

A saved encoder is a folder:

    config.json                format version, family, vision and pooler configuration, image size, package versions
    model.safetensors          weights, ``tower.*`` and ``pooler.*``
    preprocessor_config.json   preprocessing, in the family's own format
    manifest.json              sha256 of each of these files
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from saga_dist.data.images import read_image, square_image
from saga_dist.errors import CheckpointError, DataError
from saga_dist.models.families import saved_family_class
from saga_dist.models.families.base import VisionTower
from saga_dist.models.pooler import Pooler
from saga_dist.models.weights import fill
from saga_dist.utils.atomic_io import file_sha256, sha256_of_input
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder, write_file, write_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = Image | np.ndarray | str | Path

FORMAT_VERSION = 1
CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME = "config.json", "model.safetensors", "manifest.json"
CONTENT = (CONFIG_NAME, WEIGHTS_NAME, "preprocessor_config.json")
PACKAGES = ("saga_dist", "torch", "transformers", "safetensors", "numpy", "pillow")
"""Packages whose versions are saved with an encoder."""


class Encoder(nn.Module):
    """The deployable model: the tower f_theta and the pooler c_phi.

    Args:
        tower: vision tower.
        pooler: pooler of its tokens.
        image_size: side of the square that every image is resized to, in pixels.
    """

    def __init__(self, tower: VisionTower, pooler: Pooler, *, image_size: int) -> None:
        super().__init__()
        self.tower = tower
        self.pooler = pooler
        self.image_size = image_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.tower.parameters()).device

    @property
    def embedding_dim(self) -> int:
        """E, the width of an embedding."""
        return self.pooler.embedding_dim

    @torch.no_grad()
    def encode(self, images: Sequence[ImageLike], *, batch_size: int = 64) -> np.ndarray:
        """Returns embeddings [I, E] float32, l2-normalised.

        Args:
            images: PIL images, uint8 arrays [height, width, 3] (or [height, width]), or paths, in any mixture. They are
                rotated as their EXIF data says, converted to RGB and resized to the saved image size.
            batch_size: images per forward pass of the tower.

        Raises:
            DataError: an image cannot be read.
        """
        was_training = self.training
        self.eval()
        try:
            embeddings = list(self._embed_batches(list(images), batch_size))
        finally:
            self.train(was_training)
        return np.concatenate(embeddings) if embeddings else np.zeros((0, self.embedding_dim), np.float32)

    def _embed_batches(self, images: Sequence[ImageLike], batch_size: int) -> Iterator[np.ndarray]:
        """Yields the embeddings of one batch after the other, float32 [batch, E]."""
        layout = self.tower.layout
        for start in range(0, len(images), batch_size):
            pixels = self.tower.preprocess(
                [_square_rgb(image, self.image_size) for image in images[start : start + batch_size]]
            )
            main_ND = layout.main(self.tower(pixels))
            yield self.pooler(main_ND.split(list(pixels.lengths))).embeddings_IE.cpu().numpy()

    def save(self, folder: str | Path) -> None:
        """Writes the encoder into a folder, which is created if it does not exist; the manifest is written last.

        Raises:
            OutputError: the disk is full or not writable.
        """
        folder = Path(folder)
        make_folder(folder)
        config = {
            "format_version": FORMAT_VERSION,
            "family": self.tower.family,
            "image_size": self.image_size,
            "vision_config": self.tower.describe(),
            "pooler": self.pooler.describe(),
            "dtype": str(next(self.tower.parameters()).dtype).removeprefix("torch."),
            "versions": {name: version for name in PACKAGES if (version := _version(name))},
        }
        write_file(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tensors(folder / WEIGHTS_NAME, {name: tensor.contiguous() for name, tensor in self.state_dict().items()})
        with output_errors(folder):
            self.tower.save_preprocessing(folder)
        manifest = {"sha256": {name: file_sha256(folder / name) for name in CONTENT}}
        write_file(folder / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")


def load(path: str | Path, *, device: str | torch.device = "cpu", family: str = "") -> Encoder:
    """Returns a saved encoder in evaluation mode; no language model, Ray or vLLM is needed.

    Args:
        path: folder that ``Encoder.save`` wrote.
        device: device of the weights.
        family: import path ``package.module:object`` of the model family; empty for a built-in family. The import path
            in the folder is not followed unless it is given here too, so that a folder alone never makes code run.

    Raises:
        CheckpointError: a file is missing or altered, or the format has another version.
        ModelError: the family is not built in, and ``family`` is empty.
        ConfigError: the given family cannot be imported.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    _verify(folder)
    config = _read_json(folder / CONFIG_NAME)
    where = str(folder / CONFIG_NAME)
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"format version {config.get('format_version')!r}",
            where=where,
            expected=str(FORMAT_VERSION),
            fix="read it with the version of saga_dist that wrote it",
        )
    try:
        dtype = getattr(torch, config["dtype"])
        family_class = saved_family_class(config["family"], family, where=where)
        tower = family_class.rebuild_tower(config["vision_config"], folder, dtype=dtype)
        encoder = Encoder(tower, Pooler(**config["pooler"], seed=None), image_size=config["image_size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the configuration cannot be used ({error})", where=where) from error
    fill(encoder, load_file(folder / WEIGHTS_NAME).items(), where=str(folder / WEIGHTS_NAME))
    return encoder.to(device).eval()


def _square_rgb(image: ImageLike, size: int) -> np.ndarray:
    """Returns an image as uint8 [size, size, 3], processed in the same way as in training.

    Raises:
        DataError: the image cannot be read, or is an array of another dtype or shape.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        return read_image(image, size)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or (image.ndim != 2 and image.shape[2:] not in ((3,), (4,))):
            raise DataError(
                f"{image.dtype} array of shape {image.shape}", where="images", expected="uint8 [height, width, 3]"
            )
        image = Image.fromarray(image)
    return square_image(image, size)


def _verify(folder: Path) -> None:
    """Checks that a folder has the files of an encoder with the sha256 of its manifest.

    Raises:
        CheckpointError: it does not.
    """
    if not folder.is_dir():
        raise CheckpointError("no such folder", where=str(folder), expected="a folder with a saved encoder")
    recorded = _read_json(folder / MANIFEST_NAME).get("sha256")
    if not isinstance(recorded, dict) or set(recorded) != set(CONTENT):
        raise CheckpointError("does not list the files of an encoder", where=str(folder / MANIFEST_NAME))
    for name, digest in recorded.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError("is missing", where=str(file), fix="copy the whole folder again")
        if (found := sha256_of_input(file)) != digest:
            raise CheckpointError(
                f"was altered (sha256 {found[:12]})", where=str(file), expected=digest[:12], fix="copy the folder again"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot be read ({error})", where=str(path), expected="a folder that Encoder.save wrote"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object")
    return content


def _version(package: str) -> str:
    """Returns the version of an installed package; empty when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
