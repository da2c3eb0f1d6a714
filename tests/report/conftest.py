"""A run directory made by code: real learner, real tower, scripted completions, hostile names and texts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.metrics.log import MetricsLog
from saga_dist.retrieval.results import MethodResult, Results, SplitResult
from saga_dist.runtime.build import build_family, build_learner, build_prompt, torch_dtype
from saga_dist.types import EncoderTokens, RolloutTask, Sampling, ScoredGroup, StepResult
from saga_dist.wire import write_recording
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.rollout import RolloutWorker

HOSTILE_CLASS = "<img src=x onerror=alert(1)>"
HOSTILE_TEXT = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\x1b[31m\u202e\u2028 ${x}"
CLASSES = ("a plain", HOSTILE_CLASS, "c & \"d\" 'e'", "k one", "l $two", "m <b>three<b>")
"""Sorted as the folder layout sorts them: the first half trains."""
STEPS = 3


def answer(verdict: str, breast: str) -> str:
    one = '{"bill": "red", "crown": "blue", "breast": "%s", "wing": "brown", "tail": "brown", "legs": "dark"}'
    return (
        f'{{"bird_1": {one % "cream"}, "bird_2": {one % breast}, "differences": "breast differs", '
        f'"confidence": "high", "reasoning": "Several parts differ.", "same_species": "{verdict}"}}'
    )


def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    """Every second pair varies; whoever sees another breast says no."""
    if completion == 3 and pair_id.endswith("3"):
        return '{"bird_1": {"bill": "red"'
    same = int(pair_id[-1]) % 2 == 0 or completion < 2
    return answer("yes" if same else "no", "cream" if same else "maroon")


def make_config(data: Path, model: Path) -> RunConfig:
    return parse_config(
        {
            "run": {"steps": STEPS},
            "data": {
                "layout": "folder",
                "root": str(data),
                "val_fraction": 0.0,
                "image_size": 80,
                "batch_size": 6,
                "images_per_class": 2,
                "flip": True,
                "shift": 0.1,
            },
            "prompt": {"vocabulary": "standin_birds"},
            "model": {"path": str(model), "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
            "objective": {"kl_layer": 1},
            "rollout": {"engine": "transformers", "pairs_per_batch": 4, "group_size": 4, "max_tokens": 200},
            "runtime": {"kind": "serial"},
        },
        where="test",
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six classes with four images each, a colour per class."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(4):
            colour = np.array([40 * number, 255 - 40 * number, 128])
            pixels = np.clip(colour + generator.normal(0, 25, (80, 80, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def run_dir(images: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three recorded steps."""
    path = tmp_path_factory.mktemp("runs") / "a <run>"
    (path / "rollouts").mkdir(parents=True)
    config = make_config(images, tiny_checkpoint)
    (path / "config.json").write_text(config.model_dump_json())
    learner, family = build_learner(config), build_family(config)
    tokenizer = family.load_tokenizer()
    worker = RolloutWorker(
        lambda: ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id, log_prob=-0.5),
        family=family,
        prompt=build_prompt(config),
        dtype=torch_dtype(config),
        advantage_epsilon=1e-4,
        deadline_s=60.0,
    )
    sampler = ClassBalancedSampler(learner.labels("train"), 6, 2, seed=0)
    log = MetricsLog(path / "metrics.jsonl")
    for step in range(STEPS):
        batch = sampler.micro_batch(step, 0, 4)
        tokens = learner.encode_pairs("train", batch.pairs)
        sampling = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=200, seed=step)
        tasks = [RolloutTask(pair, one, sampling) for pair, one in zip(batch.pairs, tokens, strict=True)]
        groups = worker.rollout(tasks, tokens)
        if step == 1:
            groups[0] = with_texts(groups[0], HOSTILE_TEXT, "x" * 1_000_000, "a lone \ud800 surrogate", "")
        if step == 2:  # as if replay found every token likelier by 0.05
            groups = [
                replace(group, replayed=tuple(row_T + 0.05 for row_T in group.completions.log_probs))
                for group in groups
            ]
        write_recording(path / "rollouts" / f"step_{step + 1:06d}.arrow", groups)
        metrics = {"loss/dml": 1.0 - 0.1 * step, "rollout/reward_mean": 0.5 + 0.1 * step, "made/up": float(step)}
        log.write(StepResult(step=step + 1, metrics=metrics))
    learner.save_encoder(path / "model")
    split = SplitResult(
        recall_at_1=0.5, recall_at_2=0.6, recall_at_4=0.7, recall_at_8=0.8, nmi=0.3,
        confidence_interval=(0.4, 0.6), num_queries=12, num_classes=3,
    )  # fmt: skip
    method = MethodResult(name="<i>trained</i>", splits={"test": split}, seeds=(0,), wall_s=1.0, optimizer_steps=STEPS)
    Results(methods=[method], backbone_unchanged=True).save(path / "results.json")
    return path


def with_texts(group: ScoredGroup, *texts: str) -> ScoredGroup:
    """The group with other texts, as a recording of another tokenizer would hold them."""
    return replace(group, completions=replace(group.completions, texts=texts), verdicts=(None,) * len(texts))


@pytest.fixture(scope="session")
def groups_of() -> Callable[[str], list[dict[str, Any]]]:
    """Reads the viewer's data in a page."""

    def read(page: str) -> list[dict[str, Any]]:
        data = page.split('<script type="application/json" id="groups">')[1].split("</script>")[0]
        return json.loads(data)["groups"]

    return read


@pytest.fixture(scope="session")
def browser_module() -> ModuleType:
    """The module browser.py beside this file, which is no package."""
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
