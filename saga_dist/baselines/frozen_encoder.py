"""What is asked of a frozen encoder, and the way to name one on the command line.

timm:NAME                       pretrained weights of timm
timm:NAME?pretrained=false      the architecture with random weights
timm:FILE.safetensors@NAME      weights of one's own in timm's format
hf:FOLDER or hf:HUB/NAME        Hugging Face, transformers' AutoModel; ?pool=pooled, cls or mean
run:DIR                         the encoder of a SAGA run, or an encoder's own folder
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

import numpy as np
from PIL.Image import Image

from saga_dist.config import Section
from saga_dist.errors import ConfigError

OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "timm": {"pretrained": ("true", "false")},
    "hf": {"pool": ("pooled", "cls", "mean")},
    "run": {},
}
"""Kinds of encoders, and the options each takes."""


class EncoderCard(Section):
    """What must stand beside an encoder's figures, or they cannot be compared."""

    spec: str
    backbone: str
    pretraining: str
    """What the checkpoint itself says of it."""
    pooling: str
    preprocessing: str
    dimension: int
    parameters: int
    image_height: int
    image_width: int


class FrozenEncoder(Protocol):
    """Turns images into embeddings, its own preprocessing included."""

    @property
    def card(self) -> EncoderCard:
        """What it is."""

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns embeddings [I, E] float32, l2-normalised, of upright RGB images of any size."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A parsed ``--encoder``."""

    text: str
    kind: str
    name: str
    """What follows the kind, without options."""
    options: dict[str, str]


def parse_spec(text: str) -> EncoderSpec:
    """Returns the parts of ``KIND:NAME?key=value``.

    Raises:
        ConfigError: it is none, or an option is unknown or wrong.
    """
    kind, colon, rest = text.partition(":")
    name, _, query = rest.partition("?")
    if not colon or kind not in OPTIONS or not name:
        raise ConfigError(f"--encoder {text!r}", expected="timm:NAME, hf:PATH or run:DIR")
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = OPTIONS[kind]
    for key, value in options.items():
        if key not in allowed:
            raise ConfigError(f"--encoder {text!r}: unknown option {key!r}", expected=", ".join(allowed) or "none")
        if value not in allowed[key]:
            raise ConfigError(f"--encoder {text!r}: {key} = {value!r}", expected=" or ".join(allowed[key]))
    return EncoderSpec(text, kind, name, options)


def unit_float32(values_IE: np.ndarray, where: str) -> np.ndarray:
    """Returns float32 rows of length 1.

    Raises:
        ConfigError: what the encoder gave is not one vector an image.
    """
    if values_IE.ndim != 2:
        raise ConfigError(f"gives features of shape {values_IE.shape}", where=where, expected="one vector an image")
    values = values_IE.astype(np.float64)
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit
