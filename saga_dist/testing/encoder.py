"""Contract check of encoders for comparison (``saga-dist evaluate --encoder py:...``)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from saga_dist.baselines.frozen_encoder import EncoderCard, FrozenEncoder, check_embeddings
from saga_dist.errors import ConfigError

SIZES = ((80, 80), (60, 90), (120, 70), (33, 257))
"""Width and height of each test image, pixels."""
TOLERANCE = 1e-4
"""Largest absolute difference between the entries of an embedding in two calls."""


def check_encoder(encoder: FrozenEncoder) -> None:
    """Checks an encoder on four random images of different shapes.

    - The card has positive sizes.
    - Embeddings have the shape, dtype and norm that ``check_embeddings`` requires.
    - The embedding of an image is the same in every call, alone and among other images in any order.
    - Different images have different embeddings.

    Args:
        encoder: result of the factory that ``--encoder py:...`` names.

    Raises:
        AssertionError: the encoder does not meet its contract; the message says in which point.
    """
    assert isinstance(encoder, FrozenEncoder), f"a {type(encoder).__name__} has no card or no encode"
    card = encoder.card
    assert isinstance(card, EncoderCard), f"card is a {type(card).__name__}, not an EncoderCard"
    assert min(card.dimension, card.parameters, card.image_height, card.image_width) > 0, "card: a size is not positive"
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES
    ]
    values_IE = encoder.encode(images)
    try:
        check_embeddings(values_IE, len(images), card.dimension, "encode")
    except ConfigError as error:
        raise AssertionError(str(error)) from error
    assert _alike(encoder.encode(images), values_IE), "the same images have other embeddings in a second call"
    assert _alike(encoder.encode(images[::-1])[::-1], values_IE), "the order of the images changes their embeddings"
    alone_IE = np.concatenate([encoder.encode([image]) for image in images])
    assert _alike(alone_IE, values_IE), "an image has another embedding alone than beside other images"
    assert not _alike(values_IE, values_IE[:1].repeat(len(images), axis=0)), "all images have one embedding"


def _alike(found_IE: np.ndarray, expected_IE: np.ndarray) -> bool:
    return bool(np.allclose(found_IE, expected_IE, rtol=0, atol=TOLERANCE))
