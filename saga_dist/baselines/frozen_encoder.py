"""Frozen encoders for comparison: their interface, and the ways to name one on the command line.

timm:NAME                       pretrained weights of timm
timm:NAME?pretrained=false      the architecture with random weights
timm:FILE.safetensors@NAME      weights of one's own in timm's format
hf:FOLDER or hf:HUB/NAME        Hugging Face, transformers' AutoModel; ?pool=pooled, cls or mean
run:DIR                         the encoder of a SAGA run, or an encoder's own folder; ?family=package.module:object
                                names its model family where that is not built in
py:package.module:object        an encoder of one's own: a function (spec, device) to a FrozenEncoder; any ?key=value
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import parse_qsl

import numpy as np
from PIL.Image import Image

from saga_dist.config import Section
from saga_dist.errors import ConfigError
from saga_dist.utils.registry import Registry, is_import_path

if TYPE_CHECKING:
    import torch

LENGTH_TOLERANCE = 1e-3
"""Largest difference of an embedding's length from 1."""
OWN = "py"
"""Kind of encoders that are named by import path."""
ENCODERS: Registry[EncoderFactory] = Registry(
    "encoder",
    "--encoder",
    {
        "timm": "saga_dist.baselines.timm_encoder:TimmEncoder",
        "hf": "saga_dist.baselines.hf_encoder:HfEncoder",
        "run": "saga_dist.baselines.run_encoder:RunEncoder",
    },
)
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "timm": {"pretrained": ("true", "false")},
    "hf": {"pool": ("pooled", "cls", "mean")},
    "run": {"family": ()},
}
"""Options of each built-in kind, with the values that each takes; () stands for any."""


class EncoderCard(Section):
    """Facts about an encoder, without which its figures cannot be compared with others."""

    spec: str
    backbone: str
    pretraining: str
    """The checkpoint's own statement."""
    pooling: str
    preprocessing: str
    dimension: int
    parameters: int
    image_height: int
    image_width: int


@runtime_checkable
class FrozenEncoder(Protocol):
    """Turns images into embeddings, its own preprocessing included; ``saga_dist.testing.check_encoder`` checks it."""

    @property
    def card(self) -> EncoderCard:
        """The facts that are printed beside its figures."""

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns embeddings [I, E] float32, l2-normalised, of upright RGB images of any size."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A parsed ``--encoder``."""

    text: str
    """The whole text."""
    kind: str
    """Built-in kind, or ``py``."""
    name: str
    """The part between kind and options; for ``py`` the import path."""
    options: dict[str, str]
    """Values by key, as they were typed."""


EncoderFactory = Callable[[EncoderSpec, "torch.device"], FrozenEncoder]
"""Returns the encoder of a specification, on a device."""


def open_encoder(text: str, device: torch.device) -> FrozenEncoder:
    """Returns the encoder that ``--encoder`` names.

    Raises:
        UserError: it cannot be had; one line says why.
    """
    spec = parse_spec(text)
    name = spec.name if spec.kind == OWN else spec.kind
    make = ENCODERS.load_callable(name, "spec", "device")
    with ENCODERS.calling(name):
        encoder = make(spec, device)
    if not isinstance(encoder, FrozenEncoder) or not isinstance(encoder.card, EncoderCard):
        raise ConfigError(
            f"{text!r} returned a {type(encoder).__name__}",
            where=ENCODERS.key,
            expected="an encoder: card (an EncoderCard) and encode",
        )
    return encoder


def parse_spec(text: str) -> EncoderSpec:
    """Returns the parts of ``KIND:NAME?key=value``.

    Raises:
        ConfigError: it is none, or an option is unknown or wrong.
    """
    kind, colon, rest = text.partition(":")
    name, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if kind == OWN and is_import_path(name):
        return EncoderSpec(text, kind, name, options)
    if not colon or kind not in OPTIONS or not name:
        raise ConfigError(f"--encoder {text!r}", expected="timm:NAME, hf:PATH, run:DIR or py:package.module:object")
    allowed = OPTIONS[kind]
    for key, value in options.items():
        if key not in allowed:
            raise ConfigError(f"--encoder {text!r}: unknown option {key!r}", expected=", ".join(allowed) or "none")
        if allowed[key] and value not in allowed[key]:
            raise ConfigError(f"--encoder {text!r}: {key} = {value!r}", expected=" or ".join(allowed[key]))
    return EncoderSpec(text, kind, name, options)


def check_embeddings(values_IE: np.ndarray, num_images: int, dimension: int, where: str) -> np.ndarray:
    """Returns what an encoder gave for some images, which must have the form that ``FrozenEncoder.encode`` promises.

    Raises:
        ConfigError: other shape or dtype, or rows that are not finite and of length 1.
    """
    expected = f"float32 [{num_images}, {dimension}], rows of length 1"
    values = np.asarray(values_IE)
    if values.dtype != np.float32 or values.shape != (num_images, dimension):
        raise ConfigError(f"gives embeddings {values.dtype} {list(values.shape)}", where=where, expected=expected)
    errors_I = np.abs(np.linalg.norm(values.astype(np.float64), axis=1) - 1)
    if not bool((errors_I <= LENGTH_TOLERANCE).all()):
        raise ConfigError("gives embeddings that are not l2-normalised", where=where, expected=expected)
    return values


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
