"""Engines, tokens and replay worlds that several files of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gpu.reference_attention import ReferenceAttention
from workers.engine_world import SIDES, EngineMaker, OnlyOne, encode, start_transformers
from workers.replay_reference import Reference, end_to_end
from workers.replay_world import World, strong_checkpoint, world_of

from saga_dist.models.families import decoder, resolve_family
from saga_dist.models.families.attention_backends import CpuFlash
from saga_dist.types import EncoderTokens


@pytest.fixture(scope="module")
def vllm() -> Iterator[OnlyOne]:
    maker = OnlyOne()
    yield maker
    maker.close()


@pytest.fixture(params=[pytest.param("vllm", marks=pytest.mark.vllm), "transformers"])
def make_engine(request: pytest.FixtureRequest, vllm: OnlyOne) -> EngineMaker:
    """Makes the engine under test for a checkpoint and an order of text and images."""
    if request.param == "vllm":
        return vllm
    return lambda folder, order="images_first", log_probs="model": start_transformers(
        resolve_family(folder), order, log_probs=log_probs
    )


@pytest.fixture(scope="module")
def images() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(5)
    return [tuple(generator.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides) for sides in SIDES]  # type: ignore[misc]


@pytest.fixture(scope="module")
def tokens(tiny_checkpoint: Path, images: list[tuple[np.ndarray, np.ndarray]]) -> list[EncoderTokens]:
    """Our own tower's tokens of each pair, DeepStack included."""
    family = resolve_family(tiny_checkpoint)
    assert family.layout.num_deepstack > 0
    return encode(family, images)


@pytest.fixture(scope="session")
def deep_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two DeepStack levels and a tower of three layers."""
    return world_of(strong_checkpoint(tmp_path_factory.mktemp("deep"), tower_depth=3, deepstack=(0, 2), layers=4))


@pytest.fixture(scope="session")
def deep_reference(deep_world: World) -> Reference:
    return end_to_end(deep_world)


BACKENDS = {"packed": CpuFlash(), "padded": None, "reference": ReferenceAttention()}


@pytest.fixture(params=BACKENDS)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How groups are read: packed as on a CPU, padded as without a kernel, packed with the kernels' reference."""
    monkeypatch.setattr(decoder, "find_backend", lambda *_: BACKENDS[request.param])
    return str(request.param)
