"""Frozen encoders for comparison: their interface, and their specification on the command line.

timm:NAME                       a timm model with its pretrained weights
timm:NAME?pretrained=false      a timm model with random weights
timm:FILE.safetensors@NAME      a timm model with weights from a file in timm's format
hf:FOLDER or hf:HUB/NAME        a Hugging Face model, loaded by transformers' AutoModel; ?pool=pooled, cls or mean
run:DIR                         the encoder of a SAGA run, or a folder with a saved encoder; for a model family that is
                                not built in, ?family=package.module:object
py:package.module:object        a user's function (spec, device) that returns a FrozenEncoder; any ?key=value
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
from saga_dist.retrieval.results import TrainingFacts
from saga_dist.utils.registry import Registry, is_import_path

if TYPE_CHECKING:
    import torch

LENGTH_TOLERANCE = 1e-3
"""Largest absolute difference of an embedding's l2 norm from 1."""
OWN = "py"
"""Kind of encoders that are given by import path."""
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
"""Options of each built-in kind, with their valid values; an empty tuple stands for any value."""


class EncoderCard(Section):
    """Facts about an encoder that are needed to compare its results with those of others."""

    spec: str
    """Specification of the encoder, as given."""
    backbone: str
    """Architecture."""
    pretraining: str
    """Pre-training, as stated by the checkpoint."""
    pooling: str
    """Pooling of tokens to an embedding."""
    preprocessing: str
    """Resizing and cropping of images."""
    dimension: int
    """E, width of an embedding."""
    parameters: int
    """Number of parameters of the image encoder."""
    image_height: int
    """Height of the encoder's input, in pixels."""
    image_width: int
    """Width of the encoder's input, in pixels."""
    training: TrainingFacts | None = None
    """Facts about a training by this package; None for an encoder that was used as it came."""

    def training_facts(self) -> TrainingFacts:
        """Returns the facts about training, those of an encoder used as it came included."""
        return self.training or TrainingFacts(
            optimizer_steps=0,
            images_seen=0,
            image_height=self.image_height,
            image_width=self.image_width,
            pretraining=self.pretraining,
        )


@runtime_checkable
class FrozenEncoder(Protocol):
    """Encoder of images with its own preprocessing; ``saga_dist.testing.check_encoder`` checks an implementation."""

    @property
    def card(self) -> EncoderCard:
        """Facts that are printed beside the results."""

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns the embeddings of upright RGB images of any size, float32 [I, E], l2-normalised."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A parsed specification of an encoder (``--encoder``)."""

    text: str
    """The whole specification."""
    kind: str
    """Built-in kind, or ``py``."""
    name: str
    """Part between kind and options; for ``py`` the import path."""
    options: dict[str, str]
    """Values of the options by key, as typed."""


EncoderFactory = Callable[[EncoderSpec, "torch.device"], FrozenEncoder]
"""Returns the encoder of a specification, on a device."""


def open_encoder(text: str, device: torch.device) -> FrozenEncoder:
    """Returns a frozen encoder.

    Args:
        text: specification of the encoder (``--encoder``).
        device: device to run it on.

    Raises:
        UserError: the specification is wrong, or the encoder cannot be loaded.
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
    """Returns the parts of a specification ``KIND:NAME?key=value``.

    Raises:
        ConfigError: the text has another form, or an option or its value is unknown.
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
    """Returns the embeddings that an encoder returned, after checking their form.

    Args:
        values_IE: result of ``FrozenEncoder.encode``.
        num_images: I, number of images.
        dimension: E, width of an embedding.
        where: the encoder, for the error.

    Raises:
        ConfigError: shape or dtype is wrong, or a row is not finite or has another l2 norm than 1.
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
    """Returns features as float32, l2-normalised.

    Args:
        values_IE: [I, E], features of I images.
        where: the encoder, for the error.

    Raises:
        ConfigError: there is not one vector per image.
    """
    if values_IE.ndim != 2:
        raise ConfigError(f"gives features of shape {values_IE.shape}", where=where, expected="one vector an image")
    values = values_IE.astype(np.float64)
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit
