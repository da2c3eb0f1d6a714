"""Vision encoders in Hugging Face format, with the checkpoint's own image processor and transformers' AutoModel.

Pooling of an image's tokens (``?pool=``):

pooled   output of the checkpoint's own pooler (``pooler_output``; for models such as CLIP and SigLIP the projected
         image features); the default when the checkpoint has the pooler's weights, which transformers would otherwise
         initialise at random
cls      first token of the last hidden state; the default in all other cases
mean     mean of the patch tokens, without class and register tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL.Image import Image, new

from saga_dist.baselines.frozen_encoder import EncoderCard, EncoderSpec, unit_float32
from saga_dist.errors import ConfigError, ModelError
from saga_dist.models.model_files import ModelFiles

_TEXT_PARTS = ("text_model.", "text_projection.", "logit_")
"""Prefixes of the parameters that image encoding does not use."""


class HfEncoder:
    """A vision model of transformers; implements ``FrozenEncoder``.

    Args:
        spec: specification with a folder or hub name, and the option ``pool``.
        device: device of the weights.

    Raises:
        ModelError: the folder does not exist, the hub cannot be reached, or the model, its image processor or its
            weights cannot be loaded.
        ConfigError: the model does not have the requested pooling.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self._where, self._device = f"--encoder {spec.text}", device
        self._processor, model, pooler_missing = _load(spec, self._where)
        self._model = model.eval().to(device)
        self._pool = spec.options.get("pool", "")
        if self._pool == "pooled" and pooler_missing:
            raise ConfigError(
                f"the checkpoint has no {pooler_missing}", where=self._where, fix="use ?pool=cls or ?pool=mean"
            )
        probe = self._pixels([new("RGB", (320, 240))])
        output = self._forward(probe)
        if not self._pool:
            self._pool = "cls" if output.get("pooler_output") is None or pooler_missing else "pooled"
        vector = self._vector(output, probe)
        config = self._model.config
        self.card = EncoderCard(
            spec=spec.text,
            backbone=f"{type(self._model).__name__} ({config.model_type})",
            pretraining=_pretraining(spec.name),
            pooling=self._pool,
            preprocessing=type(self._processor).__name__,
            dimension=vector.shape[1],
            parameters=sum(
                parameter.numel()
                for name, parameter in self._model.named_parameters()
                if not name.startswith(_TEXT_PARTS)
            ),
            image_height=probe.shape[-2],
            image_width=probe.shape[-1],
        )

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns the embeddings of images, float32 [I, E], l2-normalised."""
        pixels = self._pixels(images)
        return unit_float32(self._vector(self._forward(pixels), pixels).float().cpu().numpy(), self._where)

    def _pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Returns the preprocessed images, [I, 3, H, W]."""
        pixels = self._processor(images=list(images), return_tensors="pt").get("pixel_values")
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4:
            raise ModelError("its image processor gives no [I, 3, H, W] pixels", where=self._where)
        return pixels.to(self._device)

    @torch.no_grad()
    def _forward(self, pixels_ICHW: torch.Tensor) -> Any:
        if hasattr(self._model, "get_image_features"):  # a model of images and text
            return self._model.get_image_features(pixel_values=pixels_ICHW)
        return self._model(pixel_values=pixels_ICHW)

    def _vector(self, output: Any, pixels_ICHW: torch.Tensor) -> torch.Tensor:
        """Returns the pooled features [I, E] of the model's output.

        Raises:
            ConfigError: the model does not have the requested pooling.
        """
        if self._pool == "pooled":
            pooled = output.get("pooler_output")
            if pooled is None:
                raise ConfigError("the model has no pooler", where=self._where, fix="use ?pool=cls or ?pool=mean")
            return torch.as_tensor(pooled).flatten(1)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:  # a convolutional map [I, C, h, w]
            if self._pool == "cls":
                raise ConfigError("the model has no class token", where=self._where, fix="use ?pool=mean")
            return torch.as_tensor(hidden).mean((2, 3))
        extra = hidden.shape[1] - self._num_patches(pixels_ICHW)
        if self._pool == "cls":
            if extra < 1:
                raise ConfigError(
                    f"{hidden.shape[1]} tokens and as many patches: no class token",
                    where=self._where,
                    fix="use ?pool=mean",
                )
            return torch.as_tensor(hidden)[:, 0]
        return torch.as_tensor(hidden)[:, max(extra, 0) :].mean(1)

    def _num_patches(self, pixels_ICHW: torch.Tensor) -> int:
        """Returns the number of patches of one image.

        Raises:
            ConfigError: the model's configuration has no patch size.
        """
        config = self._model.config
        config = config.vision_config if hasattr(config, "vision_config") else config
        if not hasattr(config, "patch_size"):
            raise ConfigError("the model's configuration has no patch size", where=self._where, fix="use ?pool=pooled")
        patch = config.patch_size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return (pixels_ICHW.shape[-2] // rows) * (pixels_ICHW.shape[-1] // columns)


def _load(spec: EncoderSpec, where: str) -> tuple[Any, Any, str]:
    """Returns image processor, model, and the name of a pooler weight that the checkpoint lacks (empty for none).

    Raises:
        ModelError: one of them cannot be loaded, or another weight is missing.
    """
    from transformers import AutoImageProcessor, AutoModel

    path = Path(spec.name).expanduser()
    if not path.is_dir() and spec.name.startswith(("/", ".", "~")):
        raise ModelError("no such folder", where=where, fix="check the path")
    name = str(path) if path.is_dir() else spec.name
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except OSError as error:
        raise ModelError(
            f"cannot be loaded from a folder or the hub ({_line(error)})",
            where=where,
            fix="check the name and the network, or give a folder with config.json, preprocessor_config.json, weights",
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise ModelError(f"transformers cannot use it ({_line(error)})", where=where) from error
    missing = sorted(loading["missing_keys"])
    other = [key for key in missing if "pooler" not in key and not key.startswith(_TEXT_PARTS)]
    if other:
        raise ModelError(
            f"{len(other)} weights are not in the checkpoint, first {other[0]}", where=where, expected="a whole encoder"
        )
    return processor, model, next((key for key in missing if "pooler" in key), "")


def _pretraining(name: str) -> str:
    """Returns data sets, base model and licence, as stated in the checkpoint's model card."""
    path = Path(name).expanduser()
    card = ModelFiles(path if path.is_dir() else name).find("README.md")
    text = card.read_text("utf-8", "replace") if card else ""
    try:
        metadata = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except yaml.YAMLError:
        metadata = None
    facts = metadata if isinstance(metadata, dict) else {}
    parts = [f"{key}: {_listed(facts[key])}" for key in ("datasets", "base_model", "license") if facts.get(key)]
    return f"{name}; {'; '.join(parts) or 'its card names no data'}"


def _listed(value: object) -> str:
    """Returns a value, or the values of a list separated by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _line(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
