"""Which groups the loggers receive, and with which images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.metrics.group_words import GroupSample
from saga_dist.runtime.build import build_splits
from saga_dist.types import StepResult
from saga_dist.wire import read_recording


class SampleSink:
    """Keeps the groups that it receives."""

    def __init__(self) -> None:
        self.samples: list[GroupSample] = []

    def open(self, *, after_step: int) -> None:
        pass

    def write(self, result: StepResult) -> None:
        pass

    def write_group(self, sample: GroupSample) -> None:
        self.samples.append(sample)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("every", "expected"), [(2, [1, 2]), (100, [1]), (0, [])])
def test_the_first_and_every_nth_step_give_a_group_that_trains_with_its_images(
    every: int, expected: list[int], scene: Any, tmp_path: Path
) -> None:
    config = scene.config(steps=2, logging={"group_every_steps": every})
    sink = SampleSink()
    coordinator = scene.coordinator(config, tmp_path / "run", sinks=[sink])
    for _ in range(2):
        coordinator.train_step()
    assert [sample.step for sample in sink.samples] == expected
    images = build_splits(config.data, seed=config.run.seed).train
    for sample in sink.samples:
        recorded = read_recording(tmp_path / "run" / "rollouts" / f"step_{sample.step:06d}.arrow")
        first = next(group for group in recorded if group.contributes)
        assert sample.group.pair == first.pair
        for shown, index in zip(sample.images, (first.pair.image_a, first.pair.image_b), strict=True):
            assert np.array_equal(shown, images.image(index))
