"""Encoders of timm, with the preprocessing that their weights were trained with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from saga_dist.baselines.frozen_encoder import EncoderCard, EncoderSpec, unit_float32
from saga_dist.checkpoint.state_files import load_tensors
from saga_dist.errors import CheckpointError, ConfigError, ModelError


class TimmEncoder:
    """A timm model without its classifier; implements ``FrozenEncoder``.

    Args:
        spec: specification with ``NAME`` or ``FILE.safetensors@NAME``, and the option ``pretrained``.
        device: device of the weights.

    Raises:
        ConfigError: timm is not installed, or has no model of this name.
        ModelError: the weights cannot be loaded, or do not fit.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        timm = _import_timm(spec)
        file, _, name = spec.name.rpartition("@")
        _check_name(timm, name, spec)
        pretrained = not file and spec.options.get("pretrained", "true") == "true"
        self._model = _create(timm, name, pretrained, spec).eval().to(device)
        if file:
            _fill(self._model, Path(file).expanduser(), spec)
        settings = timm.data.resolve_model_data_config(self._model)
        self._transform = timm.data.create_transform(**settings, is_training=False)
        self._device, self._where = device, spec.text
        config = self._model.pretrained_cfg
        _, height, width = settings["input_size"]
        self.card = EncoderCard(
            spec=spec.text,
            backbone=f"timm {config['architecture']}",
            pretraining=_pretraining(config, pretrained, file),
            pooling=_pooling(self._model),
            preprocessing=f"{settings['crop_mode']} crop of {settings['crop_pct']:g}, {settings['interpolation']}",
            dimension=int(self._model.num_features),
            parameters=sum(parameter.numel() for parameter in self._model.parameters()),
            image_height=height,
            image_width=width,
        )

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns the embeddings of images, float32 [I, E], l2-normalised."""
        pixels = torch.stack([self._transform(image) for image in images]).to(self._device)
        return unit_float32(self._model(pixels).float().cpu().numpy(), self._where)


def _import_timm(spec: EncoderSpec) -> Any:
    """Returns the module timm.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ConfigError(
            f"timm cannot be imported ({error})", where=f"--encoder {spec.text}", fix="pip install 'saga-dist[timm]'"
        ) from error
    return timm


def _check_name(timm: Any, name: str, spec: EncoderSpec) -> None:
    """Checks that timm has a model and, if the name has a tag, its weights.

    Raises:
        ConfigError: it does not.
    """
    architecture, _, tag = name.partition(".")
    where = f"--encoder {spec.text}"
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        fix = f"did you mean {close[0]}?" if close else "timm.list_models() has them all"
        raise ConfigError(f"timm has no model {architecture!r}", where=where, fix=fix)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(architecture + ".*")]
    if tag and tag not in tags:
        raise ConfigError(f"{architecture} has no weights {tag!r}", where=where, expected=", ".join(tags) or "none")


def _create(timm: Any, name: str, pretrained: bool, spec: EncoderSpec) -> Any:
    """Returns a timm model without classifier.

    Raises:
        ModelError: the weights cannot be loaded.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors; a model without weights: RuntimeError
        raise ModelError(
            f"the weights of {name} cannot be had ({_line(error)})",
            where=f"--encoder {spec.text}",
            fix="check the network, or give a file: timm:FILE.safetensors@NAME",
        ) from error


def _fill(model: Any, file: Path, spec: EncoderSpec) -> None:
    """Loads the weights of a file, which must have all tensors of the model and no others, except the classifier's.

    Raises:
        ConfigError: the file has another suffix than ``.safetensors``.
        ModelError: the file cannot be read, or its tensors do not fit.
    """
    where = f"--encoder {spec.text}"
    if file.suffix != ".safetensors":
        raise ConfigError(f"file {file.name!r}", where=where, expected="a .safetensors file")
    try:
        tensors = load_tensors(file)
    except CheckpointError as error:
        raise ModelError(str(error), where=where) from error
    heads = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    kept = {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
    try:
        wrong = model.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ModelError(f"another shape ({_line(error)})", where=where, expected="weights of that model") from error
    if names := [*wrong.missing_keys, *wrong.unexpected_keys]:
        raise ModelError(
            f"{len(names)} tensors do not fit, first {names[0]}", where=where, expected="weights in timm's own format"
        )


def _pretraining(config: dict[str, Any], pretrained: bool, file: str) -> str:
    """Returns the pre-training of the weights, as far as timm states it."""
    if file:
        return f"unknown: weights of {file}"
    if not pretrained:
        return "none: random weights"
    parts = [config.get("tag") or "no tag", config.get("hf_hub_id") or "", config.get("license") or ""]
    return ", ".join(part for part in parts if part)


def _pooling(model: Any) -> str:
    """Returns timm's name of the pooling (token, avg, map, …), which convolutional models do not have as a string."""
    pool = model.global_pool if hasattr(model, "global_pool") else ""
    return pool if isinstance(pool, str) and pool else "timm's own head"


def _line(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
