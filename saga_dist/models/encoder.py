"""The deployable encoder: tower and pooler, without any language model. ``encoder_folder`` describes its folder."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from saga_dist.data.image_input import encode_images
from saga_dist.errors import CheckpointError
from saga_dist.models.encoder_folder import CONFIG_NAME, CONTENT, WEIGHTS_NAME, encoder_folder
from saga_dist.models.families import rebuild_saved_tower
from saga_dist.models.families.base import VisionTower
from saga_dist.models.lora import merged_weights
from saga_dist.models.placement import checked_device, checked_dtype, moved
from saga_dist.models.pooler import Pooler
from saga_dist.models.weights import fill
from saga_dist.utils.file_manifest import check_manifest, read_json_object, write_manifest
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder, write_file, write_tensors

if TYPE_CHECKING:
    from saga_dist.data.image_input import Images

FORMAT_VERSION = 1
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

    def encode(self, images: Images, *, batch_size: int = 64) -> np.ndarray:
        """Returns embeddings float32, l2-normalised: [E] of a single image, [I, E] of several.

        Args:
            images: one image or several: paths, PIL images, arrays and tensors, in any mixture, as the table in
                ``data.image_input`` lists them. They are rotated as their EXIF data says, converted to RGB and resized
                to the saved image size.
            batch_size: images per forward pass of the tower, at least 1.

        Raises:
            DataError: an image cannot be read or is no image, or ``batch_size`` is less than 1.
        """
        was_training = self.training
        self.eval()
        try:
            return encode_images(
                images, self._embed, size=self.image_size, width=self.embedding_dim, batch_size=batch_size
            )
        finally:
            self.train(was_training)

    @torch.no_grad()
    def _embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns embeddings float32 [I, E] of uint8 images [S, S, 3]."""
        pixels = self.tower.preprocess(images)
        main_ND = self.tower.layout.main(self.tower(pixels))
        embeddings_IE: np.ndarray = self.pooler(main_ND.split(list(pixels.lengths))).embeddings_IE.cpu().numpy()
        return embeddings_IE

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
        parts = {"tower": merged_weights(self.tower), "pooler": self.pooler.state_dict()}
        weights = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        write_tensors(folder / WEIGHTS_NAME, {name: tensor.contiguous() for name, tensor in weights.items()})
        with output_errors(folder):
            self.tower.save_preprocessing(folder)
        write_manifest(folder, CONTENT)


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    family: str = "",
) -> Encoder:
    """Returns a saved encoder in evaluation mode; no language model, Ray or vLLM is needed.

    Args:
        path: run directory, or a folder that ``Encoder.save`` or ``saga-dist export`` wrote (but not ``onnx``).
        device: device of the weights, e.g. ``cpu`` or ``cuda:0``.
        dtype: dtype of the tower: float32, bfloat16, float16 or float64; None for the saved one. The pooler is float32.
        family: import path ``package.module:object`` of the model family; empty for a built-in family. The import path
            in the folder is not followed unless it is given here too, so that a folder alone never makes code run.

    Raises:
        CheckpointError: there is no encoder, a file is missing or altered, or the format has another version.
        ModelError: the family is not built in, and ``family`` is empty.
        ConfigError: the given family cannot be imported, or this machine cannot use the device or dtype.
    """
    device, dtype = checked_device(device), checked_dtype(dtype)
    folder = encoder_folder(path)
    check_manifest(folder, required=CONTENT, writer="a folder that Encoder.save wrote")
    config = read_json_object(folder / CONFIG_NAME, expected="a folder that Encoder.save wrote")
    where = str(folder / CONFIG_NAME)
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"format version {config.get('format_version')!r}",
            where=where,
            expected=str(FORMAT_VERSION),
            fix="read it with the version of saga_dist that wrote it",
        )
    try:
        dtype = dtype or getattr(torch, config["dtype"])
        tower = rebuild_saved_tower(config["family"], family, config["vision_config"], folder, dtype=dtype, where=where)
        encoder = Encoder(tower, Pooler(**config["pooler"], seed=None), image_size=config["image_size"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the configuration cannot be used ({error})", where=where) from error
    fill(encoder, _tensors(folder / WEIGHTS_NAME).items(), where=str(folder / WEIGHTS_NAME))
    return moved(encoder, device).eval()


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a weight file by name.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), expected="safetensors") from error


def _version(package: str) -> str:
    """Returns the version of an installed package; empty when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
