"""Which micro-batches the learner is told to expect, and that reading them early changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from saga_dist.data.sampling import training_sampler
from saga_dist.training.expected_batches import announce_next
from saga_dist.types import MicroBatch


class ListeningLearner:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.expected: list[MicroBatch] = []

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        self.expected += batches


@pytest.mark.parametrize(
    ("position", "sections", "expected"),
    [
        ((0, 0), {}, [(0, 1), (1, 0)]),
        ((0, 2), {}, [(1, 0)]),
        ((3, 0), {}, [(3, 1)]),
        ((3, 2), {}, []),
        ((0, 0), {"rollout": {"max_staleness": 2}}, [(0, 1), (1, 0), (3, 0)]),
        ((1, 0), {"rollout": {"max_staleness": 2}}, [(1, 1), (2, 0)]),
        ((0, 0), {"objective": {"lambda_lm": 0, "lambda_kl": 0}}, [(1, 0)]),
        ((0, 0), {"objective": {"signal": "verdict", "lambda_kl": 0}}, [(1, 0)]),
        ((0, 0), {"data": {"decode_threads": 0}}, []),
    ],
)
def test_the_next_micro_batches_are_announced(
    position: tuple[int, int], sections: dict[str, Any], expected: list[tuple[int, int]], scene: Any
) -> None:
    """A run of four steps with at most three micro-batches each."""
    config, learner = scene.config(**sections), ListeningLearner()
    sampler = training_sampler(config, [0, 0, 1, 1, 2, 2, 3, 3])
    announce_next(config, learner, sampler, sampler.micro_batch(*position, 6))
    assert [(batch.step, batch.index) for batch in learner.expected] == expected
    for batch in learner.expected:
        full = sampler.micro_batch(batch.step, batch.index, 6)
        assert (batch.image_ids, batch.augmentation_seed) == (full.image_ids, full.augmentation_seed)


@pytest.mark.integration
@pytest.mark.parametrize("staleness", [0, 1])
def test_threads_that_read_images_change_no_bit(staleness: int, scene: Any, tmp_path: Path) -> None:
    digests = {}
    for threads in (0, 3):
        data = {"decode_threads": threads, "flip": True, "shift": 0.1, "crop": 0.5, "color_jitter": 0.2}
        rollout = {"contributing_groups": 5, "max_staleness": staleness}
        coordinator = scene.coordinator(scene.config(steps=3, data=data, rollout=rollout), tmp_path / str(threads))
        held = coordinator._runtime.learner._images._reader._held
        seen = []
        coordinator._on_step = lambda result, held=held, seen=seen: seen.append([key[:2] for key in held])
        coordinator.run()
        digests[threads] = scene.weights_digest(tmp_path / str(threads), 3)
        assert any(seen) == bool(threads), "images of later micro-batches were read"
        if threads:
            assert (1, 0) in seen[0]
    assert digests[0] == digests[3]
