"""One step: which groups it takes, and what it says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.errors import TrainingError
from saga_dist.utils.rng import counter_generator
from saga_dist.wire import read_recording


def test_one_step_takes_the_first_contributing_groups_and_their_tokens(scene: Any, tmp_path: Path) -> None:
    coordinator = scene.coordinator(scene.config(), tmp_path)
    digest = coordinator._runtime.backbone_digest()
    result = coordinator.train_step()
    assert result.step == 1
    groups = read_recording(tmp_path / "rollouts" / "step_000001.arrow")
    assert [group.pair.pair_id for group in groups] == [f"s000001.m0.p{number:02d}" for number in range(6)]
    contributing = [group for group in groups if group.contributes]
    assert [group.pair.pair_id[-1] for group in contributing] == ["1", "3", "5"]
    assert result.metrics["replay/tokens"] == sum(group.num_tokens for group in contributing)
    # Half of the pairs are same-class; "no" is right for the others.
    rewards = np.concatenate([group.rewards_G for group in groups])
    assert result.metrics["rollout/reward_mean"] == pytest.approx(rewards.mean())
    assert result.metrics["rollout/contributing_share"] == 0.5
    assert result.metrics["rollout/json_valid_share"] == 1.0
    assert result.metrics["loss/kl"] > 0
    assert result.metrics["gradient/grpo_at_tokens_norm"] > 0
    assert coordinator._runtime.backbone_digest() == digest


def test_further_micro_batches_until_enough_groups_contribute(scene: Any, tmp_path: Path) -> None:
    config = scene.config(rollout={"contributing_groups": 7})
    coordinator = scene.coordinator(config, tmp_path)
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/groups"] == 18
    assert metrics["rollout/selected"] == 7


def test_step_without_a_contributing_group_trains_on_the_metric_loss(scene: Any, tmp_path: Path) -> None:
    coordinator = scene.coordinator(scene.config(), tmp_path, lambda *_: scene.answer("no"))
    before = coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"].clone()
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/groups"] == 18  # every allowed micro-batch was tried
    assert metrics["rollout/selected"] == 0
    assert metrics["loss/grpo"] == 0
    assert not before.equal(coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"])


def test_sampling_seeds_depend_on_run_and_pair_only(scene: Any, tmp_path: Path) -> None:
    seeds: dict[int, list[int]] = {}
    for seed in (0, 1):
        config = scene.config(run={"seed": seed, "steps": 1})
        scene.coordinator(config, tmp_path / str(seed)).train_step()
        groups = read_recording(tmp_path / str(seed) / "rollouts" / "step_000001.arrow")
        seeds[seed] = [group.completions.sampling.seed for group in groups]
    assert len({*seeds[0], *seeds[1]}) == 12
    assert counter_generator("a").random() == counter_generator("a").random()


def test_completions_are_sampled_as_configured(scene: Any, tmp_path: Path) -> None:
    settings = {"temperature": 0.3, "top_p": 0.6, "max_tokens": 190, "group_size": 4}
    scene.coordinator(scene.config(rollout=settings), tmp_path).train_step()
    for group in read_recording(tmp_path / "rollouts" / "step_000001.arrow"):
        sampling = group.completions.sampling
        assert (sampling.temperature, sampling.top_p) == (0.3, 0.6)
        assert (sampling.max_tokens, sampling.num_completions) == (190, 4)


def test_an_engine_that_disagrees_with_replay_is_refused(scene: Any, tmp_path: Path) -> None:
    config = scene.config(rollout={"max_log_prob_gap": 0.05})
    with pytest.raises(
        TrainingError, match=r"start-up check: engine and replay .* differ by mean [\d.]+ nats per token \("
    ):
        scene.coordinator(config, tmp_path).run()


def test_a_run_warns_of_steps_to_which_the_mllm_contributes_nothing(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = scene.config(steps=2, objective={"idle_steps": 2}, rollout={"max_micro_batches": 1})
    scene.coordinator(config, tmp_path, lambda *_: scene.answer("no")).run()
    assert caplog.text.count("the frozen MLLM contributed nothing to the last 2 steps") == 1


def test_a_run_with_the_metric_loss_alone_is_not_warned_of(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = scene.config(steps=2, objective={"idle_steps": 2, "lambda_lm": 0, "lambda_kl": 0})
    scene.coordinator(config, tmp_path).run()
    assert "contributed nothing" not in caplog.text


def test_a_run_warns_of_a_loss_without_weight_in_the_gradient(
    scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = scene.config(steps=1, objective={"lambda_kl": 1e-9, "min_share_steps": 1})
    scene.coordinator(config, tmp_path).run()
    assert caplog.text.count("the attention alignment is") == 1
