"""The coordinator on a tiny real learner, real replay and scripted rollouts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import training_sampler
from saga_dist.protocols import GradientHandle
from saga_dist.runtime.build import build_family, build_learner, build_prompt, build_replay_worker, torch_dtype
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.types import EncoderTokens
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.rollout import RolloutWorker
from saga_dist.workers.serial_pool import SerialPool

FaultPlan = Callable[[str, int, EncoderTokens], str]
"""Pair id, completion and tokens to a text."""


def answer(verdict: str) -> str:
    return (
        '{"bird_1": {"bill": "red", "crown": "blue"}, "bird_2": {"bill": "gold", "crown": "white"}, '
        f'"differences": "bill differs", "confidence": "high", "reasoning": "So.", "same_species": "{verdict}"}}'
    )


def half_of_the_pairs_vary(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    """In pairs with an odd number one completion of four says yes; in the others all say no."""
    return answer("yes" if int(pair_id[-2:]) % 2 and completion == 0 else "no")


class ScriptedRuntime:
    """The serial runtime with a scripted engine in place of the MLLM's sampling."""

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._config = config
        family = build_family(config)
        tokenizer = family.load_tokenizer()
        worker = RolloutWorker(
            lambda: ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id),
            family=family,
            prompt=build_prompt(config),
            dtype=torch_dtype(config),
            advantage_epsilon=1e-4,
            deadline_s=60.0,
        )
        self._replay_worker = build_replay_worker(config)
        self.learner = build_learner(config)
        self.rollouts = SerialPool(
            lambda tasks: worker.rollout(tasks, [task.tokens for task in tasks]), lease=4, max_attempts=1
        )
        self.replays = SerialPool(
            lambda tasks: [
                GradientHandle.of(self._replay_worker.replay(task, task.tokens, task.behaviour)) for task in tasks
            ],
            lease=1,
            max_attempts=1,
        )

    def reset_learner(self, config: RunConfig) -> None:
        self.learner = build_learner(config)

    def restart_learner(self) -> None:
        self.learner = build_learner(self._config)

    def backbone_digest(self) -> str:
        return self._replay_worker.backbone_digest()

    def take_checkpoint_request(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Scene:
    """What the tests of the coordinator share."""

    answer = staticmethod(answer)
    half_of_the_pairs_vary = staticmethod(half_of_the_pairs_vary)
    runtime = ScriptedRuntime

    def __init__(self, model: Path) -> None:
        self._model = model

    def config(self, steps: int = 4, **sections: dict[str, Any]) -> RunConfig:
        """Four steps of six pairs, three groups of which must contribute, with these sections' changes."""
        tree: dict[str, Any] = {
            "run": {"steps": steps},
            "data": {
                "layout": "birds",
                "image_size": 80,
                "batch_size": 8,
                "images_per_class": 2,
                "birds": {
                    "train_classes": 4,
                    "train_images_per_class": 3,
                    "val_images_per_class": 2,
                    "test_images_per_class": 2,
                    "probe_images": 0,
                },
            },
            "prompt": {"vocabulary": "standin_birds"},
            "model": {"path": str(self._model), "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
            "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1},
            "rollout": {
                "engine": "transformers",
                "pairs_per_batch": 6,
                "group_size": 4,
                "contributing_groups": 3,
                "max_micro_batches": 3,
                "max_tokens": 200,
                "max_log_prob_gap": 1e9,  # a scripted engine knows nothing of the model
            },
            "checkpoint": {"every_steps": 1, "keep": 2},
            "evaluation": {"every_steps": 2},
            "runtime": {"kind": "serial"},
        }
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return parse_config(tree, where="test")

    def coordinator(
        self,
        config: RunConfig,
        run_dir: Path,
        script: FaultPlan = half_of_the_pairs_vary,
        **arguments: Any,
    ) -> Coordinator:
        """A coordinator with a runtime of its own; it makes the run's folder."""
        runtime = ScriptedRuntime(config, script)
        run_dir.mkdir(exist_ok=True)
        sampler = training_sampler(config, runtime.learner.labels("train"))
        return Coordinator(config, runtime, sampler, run_dir, **arguments)

    def rows(self, run_dir: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]

    def weights_digest(self, run_dir: Path, step: int) -> str:
        folder = run_dir / "checkpoints" / f"step_{step:08d}"
        content = b"".join((folder / name).read_bytes() for name in ("learner.safetensors", "optimizer.safetensors"))
        return hashlib.sha256(content).hexdigest()

    def audit(self, config: RunConfig, run_dir: Path) -> dict[str, int]:
        """What became of all pairs of a run that is over."""
        sampler = training_sampler(config, build_learner(config).labels("train"))
        return PairLedger(run_dir / "ledger.jsonl").audit(sampler, config.run.steps, config.rollout.pairs_per_batch)


@pytest.fixture
def scene(tiny_checkpoint: Path) -> Scene:
    return Scene(tiny_checkpoint)
