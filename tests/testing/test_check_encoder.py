"""The contract check of encoders for comparison: it passes an honest one and finds every way to break the contract."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saga_dist.baselines.frozen_encoder import EncoderCard, open_encoder
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler
from saga_dist.testing.encoder import check_encoder

CARD = EncoderCard(
    spec="py:own:Encoder", backbone="mean colours", pretraining="none", pooling="none", preprocessing="16 x 16",
    dimension=48, parameters=1, image_height=16, image_width=16,
)  # fmt: skip


class MeanColours:
    """Colours of a 4 x 4 picture."""

    card: Any = CARD

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        values_IE = np.stack([np.asarray(image.resize((4, 4)), np.float32).flatten() - 127 for image in images])
        return values_IE / np.linalg.norm(values_IE, axis=1, keepdims=True)


def test_an_honest_encoder_holds_the_contract() -> None:
    check_encoder(MeanColours())


def test_the_encoder_of_a_run_holds_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tower = resolve_family(tiny_checkpoint).load_tower()
    Encoder(tower, Pooler(width=tower.layout.width, embedding_dim=16, seed=0), image_size=80).save(tmp_path)
    check_encoder(open_encoder(f"run:{tmp_path}", torch.device("cpu")))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="the extra timm is not installed")
def test_an_encoder_of_timm_holds_it() -> None:
    torch.manual_seed(0)
    check_encoder(open_encoder("timm:vit_tiny_patch16_224?pretrained=false", torch.device("cpu")))


class Spoilt(MeanColours):
    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.wrong(super().encode(images))

    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Doubled(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return 2 * values_IE


class InDoublePrecision(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return values_IE.astype(np.float64)


class Narrow(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return values_IE[:, :40]


class NotFinite(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return values_IE * np.float32("nan")


class SeesTheBatch(MeanColours):
    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return super().encode(images) * np.float32(1 if len(images) > 1 else -1)


class SeesTheOrder(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        values_IE[0] *= -1
        return values_IE


class Changes(Spoilt):
    def __init__(self) -> None:
        self._calls = itertools.count()

    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return values_IE * np.float32(-1 if next(self._calls) else 1)


class Blind(Spoilt):
    def wrong(self, values_IE: np.ndarray) -> np.ndarray:
        return np.full_like(values_IE, 48**-0.5)


class WithoutCard(MeanColours):
    card = "a card"


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (Doubled, "not l2-normalised"),
        (InDoublePrecision, "float64"),
        (Narrow, r"\[4, 40\]; expected float32 \[4, 48\]"),
        (NotFinite, "not l2-normalised"),
        (SeesTheBatch, "alone than beside other images"),
        (SeesTheOrder, "order of the images"),
        (Changes, "in a second call"),
        (Blind, "all images have one embedding"),
        (WithoutCard, "card is a str"),
        (object, "has no card or no encode"),
    ],
)
def test_a_broken_contract_is_found(encoder: type[Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_encoder(encoder())
