"""The real parts in both runtimes: same decisions, same numbers, same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.data.sampling import training_sampler
from saga_dist.metrics.log import MetricsLog
from saga_dist.metrics.registry import find_metric
from saga_dist.protocols import Runtime
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.runtime.ray.scale_command import read_workers
from saga_dist.runtime.run import build_runtime
from saga_dist.training.coordinator import Coordinator

pytestmark = pytest.mark.cluster

DEMO = Path(__file__).resolve().parents[3] / "saga_dist" / "standin" / "demo.toml"
STEPS = 2
SMALL = [
    f"run.steps={STEPS}",
    f"evaluation.every_steps={STEPS}",
    f"checkpoint.every_steps={STEPS}",
    "data.batch_size=16",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.engine=transformers",
    "rollout.pairs_per_batch=4",
    "rollout.group_size=8",
    "rollout.max_micro_batches=2",
    "rollout.num_cpus=0.5",
    "replay.num_cpus=0.5",
    "runtime.local_cpus=4",
]
SIGNALS = {"grpo": [], "verdict": ["objective.signal=verdict", "objective.lambda_kl=0", "evaluation.verdict_pairs=0"]}
"""Overrides of each signal of the frozen MLLM."""
SCALABLE = {"grpo": ["rollout", "replay"], "verdict": ["replay"]}
"""Pools of each signal that `saga-dist scale` may change."""
OF_THE_CLOCK = ("rollout_pool/", "replay_pool/", "rollout/tokens_per_s", "step/", "learner/idle_share")
"""Metrics that may differ: they measure time, or a pool that serial has not."""
EARLY = "rollout/early_groups"
"""Metric that differs: only Ray starts the rollouts of a step's second micro-batch together with the first one's."""


def train(config: RunConfig, runtime: Runtime, folder: Path) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Returns the metrics of every step and the sha256 of every file of the last checkpoint.

    Every name in metrics.jsonl must have its entry in the registry of metrics.
    """
    folder.mkdir()
    sampler = training_sampler(config, runtime.learner.labels("train"))
    Coordinator(config, runtime, sampler, folder).run()
    written = list(MetricsLog(folder / "metrics.jsonl").rows())
    assert {name for row in written for name in row if find_metric(name) is None} == set()
    rows = [
        {name: value for name, value in row.items() if not name.startswith((*OF_THE_CLOCK, EARLY))} for row in written
    ]
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (folder / "checkpoints" / f"step_{STEPS:08d}").glob("*.safetensors")
    }
    return rows, files


def num_early(folder: Path) -> float:
    """Returns the number of groups whose rollouts started before their micro-batch had its turn."""
    return sum(row.get(EARLY, 0.0) for row in MetricsLog(folder / "metrics.jsonl").rows())


@pytest.mark.timeout(1200)  # three trainings with a process for each role
@pytest.mark.parametrize("signal", ["grpo", pytest.param("verdict", marks=pytest.mark.slow)])
def test_serial_and_ray_give_the_same_bits(ray_cluster: dict[str, str], tmp_path: Path, signal: str) -> None:
    results, digests = {}, {}
    for name, overrides in (
        ("serial", ["runtime.kind=serial"]),
        ("ray", ["rollout.workers=2"]),
        ("ray with a replay worker", ["rollout.workers=1", "replay.workers=1", "runtime.pin_roles=true"]),
    ):
        config = load_config(DEMO, [*SMALL, *SIGNALS[signal], *overrides])
        runtime = build_runtime(config)
        try:
            results[name] = train(config, runtime, tmp_path / name)
            digests[name] = runtime.backbone_digest()
            if isinstance(runtime.rollouts, RayPool):
                assert bool(runtime.rollouts.workers()) == (signal == "grpo"), "no engine without rollouts"
            if config.replay.workers:
                (tmp_path / name / "config.json").write_text("{}")
                runtime.watch(tmp_path / name)
                assert list(read_workers(tmp_path / name).pools) == SCALABLE[signal]
        finally:
            runtime.close()
    rows, files = results["serial"]
    assert len(files) == 2, "learner and optimizer"
    assert sum(f"loss/{signal}" in row for row in rows) == STEPS
    assert any(row.get(f"loss/{signal}") for row in rows), "pairs contributed"
    assert results["ray"] == results["serial"]
    assert results["ray with a replay worker"] == results["serial"]
    assert len(set(digests.values())) == 1
    expected = {"serial": 0, "ray": 4, "ray with a replay worker": 4} if signal == "grpo" else dict.fromkeys(results, 0)
    assert {name: num_early(tmp_path / name) for name in results} == expected
