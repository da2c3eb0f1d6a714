"""Recorded rollouts: what they hold, training from them, and making nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.errors import DataError
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.wire import read_recording


def test_recordings_hold_what_replay_made_of_the_groups_that_trained(scene: Any, tmp_path: Path) -> None:
    result = scene.coordinator(scene.config(), tmp_path).train_step()
    groups = read_recording(tmp_path / "rollouts" / "step_000000.arrow")
    trained = [group for group in groups if group.replayed]
    assert [group.contributes for group in trained] == [True] * 3
    assert len(groups) > 3
    gaps = [
        replayed_T.astype(np.float64) - log_probs_T
        for group in trained
        for replayed_T, log_probs_T in zip(group.replayed, group.completions.log_probs, strict=True)
    ]
    lengths = [len(ids) for group in trained for ids in group.completions.token_ids]
    assert [len(gaps_T) for gaps_T in gaps] == lengths
    mean = np.abs(np.concatenate(gaps)).mean()
    assert result.metrics["replay/log_prob_gap_mean"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.integration
def test_a_recording_trains_the_same_bits_without_an_engine(scene: Any, tmp_path: Path) -> None:
    config = scene.config()
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "config.json").write_text(config.model_dump_json())
    scene.coordinator(config, tmp_path / "recorded").run()

    def silent(*_: object) -> str:
        raise AssertionError("nothing is generated")

    again = scene.config(rollout={"recording": str(tmp_path / "recorded")})
    scene.coordinator(again, tmp_path / "again", silent).run()
    assert scene.weights_digest(tmp_path / "again", 4) == scene.weights_digest(tmp_path / "recorded", 4)
    assert not again.needs_engine

    other = scene.config(rollout={"recording": str(tmp_path / "recorded")}, optimizer={"lr_encoder": 1e-3})
    scene.coordinator(other, tmp_path / "other", silent).run()
    steps = [row for row in scene.rows(tmp_path / "other") if "loss/dml" in row]
    assert all("importance/weight_p50" in row for row in steps), "off-policy from the first step on"
    assert scene.audit(other, tmp_path / "other")["trained"] == 12

    with pytest.raises(DataError, match=r"step 4 was not recorded; set run.steps = 4"):
        scene.coordinator(
            scene.config(steps=5, rollout={"recording": str(tmp_path / "recorded")}),
            tmp_path / "long",
            silent,
        ).run()


def test_a_recording_of_other_pairs_is_refused(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=1)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "config.json").write_text(config.model_dump_json())
    scene.coordinator(config, tmp_path / "recorded").run()
    other = scene.config(run={"seed": 1, "steps": 1}, rollout={"recording": str(tmp_path / "recorded")})
    with pytest.raises(DataError, match=r"pair s000000.m0.p00 has images .* use the data, seed and batches"):
        scene.coordinator(other, tmp_path / "other").run()


def test_only_rolling_out_records_every_step_once(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=2)
    runtime = scene.runtime(config, scene.half_of_the_pairs_vary)
    assert record_rollouts(config, runtime, tmp_path) == 2
    assert record_rollouts(config, runtime, tmp_path) == 0, "the same command goes on"
    for step in range(2):
        groups = read_recording(tmp_path / "rollouts" / f"step_{step:06d}.arrow")
        assert [group.pair_id for group in groups] == [f"s{step:06d}.m0.p{number:02d}" for number in range(6)]
        assert {group.completions.encoder_version for group in groups} == {0}
    assert runtime.learner.step == 0
