"""A learner of two processes in the Ray runtime: the run of one process, and one error, not a hang, when a rank is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file

from saga_dist.assembly import build_learner, build_replay_worker, build_rollout_worker
from saga_dist.cluster.actors import Factories
from saga_dist.cluster.runtime import RayRuntime
from saga_dist.config import RunConfig, load_config
from saga_dist.coordinator import Coordinator
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import DataError, SagaError, TrainingError
from saga_dist.types import MicroBatch
from saga_dist.workers.data_parallel import Ranks
from saga_dist.workers.learner import Learner

pytestmark = pytest.mark.cluster

DEMO = Path(__file__).resolve().parents[2] / "saga_dist" / "standin" / "demo.toml"
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
    "rollout.num_cpus=0.5",
    "replay.workers=1",
    "replay.num_cpus=0.5",
    "runtime.learner_num_cpus=0.5",
    "runtime.heartbeat_s=5.0",
]
METRIC_LOSS_ONLY = ["objective.lambda_lm=0.0", "objective.lambda_kl=0.0", "evaluation.verdict_pairs=0"]


def sampler_of(config: RunConfig, runtime: RayRuntime) -> ClassBalancedSampler:
    labels = runtime.learner.labels("train")
    return ClassBalancedSampler(labels, config.data.batch_size, config.data.images_per_class, seed=config.run.seed)


@pytest.fixture
def alone(ray_cluster: dict[str, str]) -> Iterator[RayRuntime]:
    """Two ranks and nobody else."""
    with RayRuntime(load_config(DEMO, [*SMALL, *METRIC_LOSS_ONLY, "runtime.learner_processes=2"])) as runtime:
        yield runtime


def ranks_alive() -> list[int]:
    """Process ids of the ranks in this cluster."""
    actors: dict[str, dict[str, Any]] = ray._private.state.actors()
    return [
        actor["Pid"] for actor in actors.values() if actor["ActorClassName"] == "RankActor" and actor["State"] == "ALIVE"
    ]


def gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_two_processes_train_as_one(ray_cluster: dict[str, str], tmp_path: Path) -> None:
    weights, metrics = {}, {}
    for processes in (1, 2):
        config = load_config(DEMO, [*SMALL, f"runtime.learner_processes={processes}", "runtime.pin_roles=true"])
        folder = tmp_path / str(processes)
        folder.mkdir()
        with RayRuntime(config) as runtime:
            Coordinator(config, runtime, sampler_of(config, runtime), folder, on_step=print).run()
            metrics[processes] = runtime.learner.embed("val").values_IE
        weights[processes] = load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / "learner.safetensors")
    for name, tensor in weights[1].items():
        error = (weights[2][name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
        print(name, float(error))
    assert 0
