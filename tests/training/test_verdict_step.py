"""Training on verdicts: every pair trains, nothing is sampled, and the run resumes to the bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_dist.config import RunConfig
from saga_dist.data.sampling import training_sampler
from saga_dist.errors import ConfigError, Interrupted, WorkerError
from saga_dist.protocols import GradientHandle
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.training.verdict_step import verdict_metrics
from saga_dist.types import EncoderTokens, ImagePair, LogProbMismatch, VerdictTask
from saga_dist.workers.serial_pool import SerialPool

VERDICT = {"signal": "verdict", "lambda_kl": 0.0, "metric_loss": "proxy_anchor", "kl_layer": 1}


def no_rollouts(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    raise AssertionError("a completion was sampled")


def config_of(scene: Any, **sections: dict[str, Any]) -> RunConfig:
    config: RunConfig = scene.config(objective=VERDICT, **sections)
    return config


def test_every_pair_of_one_micro_batch_trains(scene: Any, tmp_path: Path) -> None:
    coordinator = scene.coordinator(config_of(scene), tmp_path, no_rollouts)
    digest = coordinator._runtime.backbone_digest()
    before = coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"].clone()
    metrics = coordinator.train_step().metrics
    assert metrics["verdict/pairs"] == 6
    assert metrics["verdict/quarantined"] == 0
    assert metrics["gradient/verdict_at_tokens_norm"] > 0
    assert not any(name.startswith(("rollout/", "loss/grpo", "loss/kl")) for name in metrics)
    assert not before.equal(coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"])
    assert coordinator._runtime.backbone_digest() == digest
    (row,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert row["trained"] == [f"s000001.m0.p{number:02d}" for number in range(6)]
    assert (row["micro_batches"], row["surplus"], row["zero_variance"], row["quarantined"]) == (1, [], [], {})
    assert not (tmp_path / "rollouts").exists()


def test_the_loss_is_the_mean_over_the_pairs(scene: Any, tmp_path: Path) -> None:
    config = config_of(scene)
    runtime = scene.runtime(config, no_rollouts)
    sampler = training_sampler(config, runtime.learner.labels("train"))
    batch = sampler.micro_batch(0, 0, 6)
    encoded = runtime.learner.encode(batch)
    alone = [
        runtime._replay_worker.replay(VerdictTask(pair, tokens, num_pairs_total=1), tokens)
        for pair, tokens in zip(batch.pairs, encoded.handles, strict=True)
    ]
    coordinator = scene.coordinator(config, tmp_path, no_rollouts)
    metrics = coordinator.train_step().metrics
    losses = [gradient.loss for gradient in alone]
    assert metrics["loss/verdict"] == pytest.approx(sum(losses) / 6, rel=1e-5)
    p_right = [math.exp(-loss) for loss in losses]
    assert metrics["verdict/probability_mean"] == pytest.approx(sum(p_right) / 6, rel=1e-5)
    assert metrics["verdict/right_share"] == pytest.approx(sum(p > 0.5 for p in p_right) / 6)
    for name, same in (("same", True), ("different", False)):
        values = [p for p, pair in zip(p_right, batch.pairs, strict=True) if pair.same == same]
        assert metrics[f"verdict/probability_mean_{name}"] == pytest.approx(sum(values) / 3, rel=1e-5)
        assert metrics[f"verdict/right_share_{name}"] == pytest.approx(sum(p > 0.5 for p in values) / 3)
    joint = torch.cat([gradient.values_NW.flatten() for gradient in alone]).norm().item() / 6
    assert metrics["gradient/verdict_at_tokens_norm"] == pytest.approx(joint, rel=1e-4)


def test_metrics_by_hand() -> None:
    def handle(pair_id: str, p_right: float) -> GradientHandle:
        return GradientHandle(pair_id, None, -math.log(p_right) / 3, 2, LogProbMismatch(0.0, 0.0))

    pairs = [ImagePair("a", 0, 1, 0, 0), ImagePair("b", 0, 2, 0, 1), ImagePair("c", 1, 3, 0, 1)]
    pairs.append(ImagePair("lost", 4, 5, 1, 1))
    metrics = verdict_metrics(pairs, [handle("a", 0.9), handle("b", 0.2), handle("c", 0.7)])
    assert metrics == {
        "verdict/pairs": 3.0,
        "replay/tokens": 6.0,
        "verdict/right_share": pytest.approx(2 / 3),
        "verdict/probability_mean": pytest.approx(0.6),
        "verdict/right_share_same": 1.0,
        "verdict/probability_mean_same": pytest.approx(0.9),
        "verdict/right_share_different": 0.5,
        "verdict/probability_mean_different": pytest.approx(0.45),
    }
    assert "verdict/right_share_different" not in verdict_metrics(pairs, [handle("a", 0.9)])


def test_without_weight_the_metric_loss_trains_alone(scene: Any, tmp_path: Path) -> None:
    config = scene.config(objective={**VERDICT, "lambda_lm": 0.0})
    metrics = scene.coordinator(config, tmp_path, no_rollouts).train_step().metrics
    assert "verdict/pairs" not in metrics
    assert metrics["gradient/verdict_at_tokens_norm"] == 0


def test_a_pair_that_replay_fails_on_leaves_the_denominator(scene: Any, tmp_path: Path) -> None:
    config = config_of(scene, run={"steps": 1})
    coordinator = scene.coordinator(config, tmp_path, no_rollouts)
    worker, asked = coordinator._runtime._replay_worker, list[VerdictTask]()

    def replay(tasks: list[VerdictTask]) -> list[GradientHandle]:
        asked.extend(tasks)
        if tasks[0].pair_id.endswith("p02"):
            raise WorkerError("scripted")
        return [GradientHandle.of(worker.replay(task, task.tokens)) for task in tasks]

    coordinator._runtime.replays = SerialPool(replay, lease=1, max_attempts=1)
    metrics = coordinator.train_step().metrics
    assert [task.num_pairs_total for task in asked] == [6] * 6 + [5] * 5
    assert (metrics["verdict/pairs"], metrics["verdict/quarantined"]) == (5, 1)
    counts = {"trained": 5, "surplus": 0, "zero_variance": 0, "quarantined": 1, "cancelled": 0}
    assert scene.audit(config, tmp_path) == counts


@pytest.mark.integration
def test_four_steps_equal_two_interrupted_and_two_resumed(scene: Any, tmp_path: Path) -> None:
    config = config_of(scene)
    straight: Coordinator = scene.coordinator(config, tmp_path / "straight", no_rollouts)
    selection = straight.run()
    stopped = scene.coordinator(
        config, tmp_path / "resumed", no_rollouts, should_stop=lambda: stopped._runtime.learner.step == 2
    )
    with pytest.raises(Interrupted, match="stopped after step 2"):
        stopped.run()
    assert scene.coordinator(config, tmp_path / "resumed", no_rollouts).run() == selection
    assert scene.weights_digest(tmp_path / "resumed", 4) == scene.weights_digest(tmp_path / "straight", 4)
    trained = [
        [
            {name: value for name, value in row.items() if not name.endswith(("_s", "idle_share"))}
            for row in scene.rows(tmp_path / name)
        ]
        for name in ("straight", "resumed")
    ]
    assert trained[0] == trained[1]
    assert scene.audit(config, tmp_path / "resumed")["trained"] == 4 * 6


def test_rollouts_alone_are_refused(scene: Any, tmp_path: Path) -> None:
    config = config_of(scene)
    runtime = scene.runtime(config, no_rollouts)
    with pytest.raises(ConfigError, match=r'^rollout: objective.signal = "verdict" samples nothing; expected "grpo"$'):
        record_rollouts(config, runtime, tmp_path)
