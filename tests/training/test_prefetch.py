"""Rollouts that run ahead of the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.training.rollout_source import WorkerRolloutSource
from saga_dist.wire import read_recording


@pytest.mark.parametrize("staleness", [1, 2])
def test_rollouts_run_ahead_and_never_beyond_the_bound(staleness: int, scene: Any, tmp_path: Path) -> None:
    config = scene.config(rollout={"max_staleness": staleness})
    scene.coordinator(config, tmp_path).run()
    steps = [row for row in scene.rows(tmp_path) if "loss/dml" in row]
    ages = [[row[f"staleness/groups_at_{age}"] for age in range(staleness + 1)] for row in steps]
    # Step s trains on what the encoder of step s - S said, once there was one.
    expected = [[6.0 if age == min(step, staleness) else 0.0 for age in range(staleness + 1)] for step in range(4)]
    assert ages == expected
    assert [row["staleness/too_old_groups"] for row in steps] == [0.0] * 4
    for step in range(4):
        groups = read_recording(tmp_path / "rollouts" / f"step_{step + 1:06d}.arrow")
        assert {group.completions.encoder_version for group in groups} == {max(0, step - staleness)}
    assert "importance/weight_p50" not in steps[0], "the first step is on-policy"
    assert 0.5 < steps[-1]["importance/weight_p50"] < 2
    assert steps[-1]["importance/weight_p0"] != 1
    assert scene.audit(config, tmp_path) == {"trained": 12, "surplus": 0, "zero_variance": 12, "quarantined": 0}


def test_a_synchronous_run_says_nothing_of_staleness_and_takes_the_same_pairs(scene: Any, tmp_path: Path) -> None:
    recorded = {}
    for staleness in (0, 1):
        config = scene.config(rollout={"max_staleness": staleness})
        scene.coordinator(config, tmp_path / str(staleness)).run()
        recorded[staleness] = [
            [(group.pair, group.completions.sampling) for group in read_recording(file)]
            for file in sorted((tmp_path / str(staleness) / "rollouts").glob("*.arrow"))
        ]
    assert recorded[0] == recorded[1], "running ahead changes the encoder that is asked, never the question"
    assert not [
        name for row in scene.rows(tmp_path / "0") for name in row if name.startswith(("staleness", "importance"))
    ]


def test_groups_that_are_too_old_are_generated_again(scene: Any, tmp_path: Path) -> None:
    config = scene.config(rollout={"max_staleness": 1})
    coordinator = scene.coordinator(config, tmp_path)
    coordinator.train_step()
    runtime = coordinator._runtime
    runtime.learner._step = 3  # as if steps had passed while a group of step 1 was under way
    batch = coordinator._sampler.micro_batch(1, 0, 6)
    stale = batch.__class__(3, 0, batch.image_ids, batch.labels, batch.augmentation_seed, batch.pairs)
    stream = coordinator._source
    assert isinstance(stream, WorkerRolloutSource)
    stream._ahead[3, 0] = stream._ahead.pop((1, 0))
    groups = stream.get_groups(stale, runtime.learner.encode(stale))
    assert [group.completions.encoder_version for group in groups] == [3] * 6
    assert [stream.off_policy(group, 3) for group in groups] == [(None, None)] * 6
    assert stream.end_step(3, 1)["staleness/too_old_groups"] == 6


def test_tokens_that_wait_for_later_steps_have_a_budget(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=9, rollout={"max_staleness": 8, "ahead_budget_mb": 1})
    coordinator = scene.coordinator(config, tmp_path)
    stream = coordinator._source
    stream.prefetch(0)
    one = next(iter(stream._ahead.values())).encoded.num_bytes
    assert one == 6 * 2 * 25 * 2 * 128 * 4, "pairs, images, tokens, levels, width, bytes"
    assert len(stream._ahead) == -(-(1 << 20) // one) == 4
    assert stream.end_step(9, 1)["staleness/held_back"] == 1


@pytest.mark.parametrize("truncation", [0.0, 1.0])
def test_on_policy_groups_can_be_corrected_for_the_difference_of_the_programs(
    scene: Any, tmp_path: Path, truncation: float
) -> None:
    """The loss again, token by token, from the recording: the scripted engine reports -1 for every token."""
    config = scene.config(rollout={"mismatch_truncation": truncation})
    metrics = scene.coordinator(config, tmp_path).train_step().metrics
    expected, num_tokens = 0.0, 0
    for group in read_recording(tmp_path / "rollouts" / "step_000001.arrow"):
        if not group.replayed:
            continue
        for advantage, replayed_T in zip(group.advantages_G, group.replayed, strict=True):
            weights_T = np.minimum(np.exp(replayed_T + 1), truncation) if truncation else np.ones(len(replayed_T))
            expected -= float(advantage * (weights_T * replayed_T).sum())
            num_tokens += len(replayed_T)
    assert metrics["loss/grpo"] == pytest.approx(expected / num_tokens, rel=1e-4)
