"""Weights, data and code are compared by content: what a run resumes from, and what it takes as on-policy."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from saga_dist.errors import CheckpointError
from saga_dist.runtime.build import build_learner
from saga_dist.runtime.run import train_on
from saga_dist.training.identity import refuse_other_identity
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.wire import RunIdentity, open_recording

integration = pytest.mark.integration

OURS = RunIdentity(backbone="b" * 64, tower="t" * 64, split="s" * 64, code="1.0+g000000000000")
EXTRA: dict[str, Any] = {"split_hash": OURS.split, "identity": OURS.to_json()}


@pytest.fixture
def own_model(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A model folder whose weights a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def change(model: Path, part: str) -> None:
    """Changes one number of a tensor of the tower (``visual``) or of the language model (``language_model``)."""
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    name = min(name for name in tensors if part in name and name.endswith("weight"))
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backbone", "the frozen MLLM's weights have changed since this checkpoint"),
        ("tower", "the vision tower's initial weights have changed since this checkpoint"),
        ("split", "the data set has changed since this checkpoint"),
    ],
)
def test_a_checkpoint_of_other_content_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"step_00000001: {words}; restore .* or choose a new --run-dir"):
        refuse_other_identity(replace(OURS, **{name: "0" * 64}), EXTRA, where=Path("step_00000001"))


def test_what_is_equal_or_unknown_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    where = Path("step_00000001")
    refuse_other_identity(OURS, EXTRA, where=where)
    refuse_other_identity(OURS, {"split_hash": OURS.split}, where=where)  # a checkpoint of an earlier version
    refuse_other_identity(OURS, {"split_hash": OURS.split, "identity": {"backbone": "0"}}, where=where)
    refuse_other_identity(replace(OURS, backbone=""), EXTRA, where=where)  # a run without an MLLM
    assert caplog.text == ""


def test_other_code_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    refuse_other_identity(replace(OURS, code="1.1"), EXTRA, where=Path("step_00000001"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "written by saga_dist 1.0+g000000000000, this is 1.1" in record.getMessage()


def test_the_digest_of_the_tower_is_that_of_its_weights(scene: Any, own_model: Path) -> None:
    config = scene.config(model={"path": str(own_model)})
    before = build_learner(config).tower_digest()
    change(own_model, "language_model")
    assert build_learner(config).tower_digest() == before
    change(own_model, "visual")
    assert build_learner(config).tower_digest() != before


@integration
@pytest.mark.parametrize(
    ("part", "words"),
    [("language_model", "the frozen MLLM's weights"), ("visual", "the vision tower's initial weights")],
)
def test_a_model_that_was_replaced_is_not_resumed_with(
    scene: Any, tmp_path: Path, own_model: Path, part: str, words: str
) -> None:
    config = scene.config(steps=1, model={"path": str(own_model)})
    scene.coordinator(config, tmp_path / "run").run()
    scene.coordinator(config, tmp_path / "run").run()
    change(own_model, part)
    with pytest.raises(CheckpointError, match=f"{words} have changed since this checkpoint"):
        scene.coordinator(config, tmp_path / "run").run()


@integration
@pytest.mark.parametrize("part", ["language_model", "visual"])
def test_a_recording_made_with_other_weights_is_off_policy(
    scene: Any, tmp_path: Path, own_model: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    def weighted() -> list[bool]:
        run = tmp_path / f"again_{len(list(tmp_path.glob('again_*')))}"
        again = scene.config(steps=2, model={"path": str(own_model)}, rollout={"recording": str(tmp_path / "recorded")})
        scene.coordinator(again, run).run()
        return ["importance/weight_p50" in row for row in scene.rows(run) if "loss/grpo" in row]

    config = scene.config(steps=2, model={"path": str(own_model)})
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "config.json").write_text(config.model_dump_json())
    scene.coordinator(config, tmp_path / "recorded").run()
    assert weighted() == [False, False]
    change(own_model, part)
    assert weighted() == [True, True]
    assert caplog.text.count("off-policy") == 1


@integration
def test_recordings_of_two_models_are_not_mixed(scene: Any, tmp_path: Path, own_model: Path) -> None:
    def record(steps: int) -> int:
        config = scene.config(steps=steps, model={"path": str(own_model)})
        return record_rollouts(config, scene.runtime(config, scene.half_of_the_pairs_vary), tmp_path / "run")

    (tmp_path / "run").mkdir()
    assert record(1) == 1
    identity = open_recording(tmp_path / "run" / "rollouts" / "step_000001.arrow").identity
    assert identity is not None
    assert len(identity.backbone) == len(identity.tower) == len(identity.split) == 64
    assert record(2) == 1
    change(own_model, "language_model")
    with pytest.raises(CheckpointError, match=r"step_000002\.arrow: the frozen MLLM's weights have changed"):
        record(3)


@integration
def test_the_manifest_of_a_checkpoint_holds_the_identity(scene: Any, tmp_path: Path) -> None:
    coordinator = scene.coordinator(scene.config(steps=1), tmp_path)
    coordinator.run()
    manifest = json.loads((tmp_path / "checkpoints" / "step_00000001" / "manifest.json").read_text())
    kept = RunIdentity.from_json(manifest["extra"]["identity"])
    assert kept == coordinator._identity
    assert kept.backbone == coordinator._runtime.backbone_digest()
    assert kept.tower != coordinator._runtime.learner.tower_digest(), "that of the tower before the first step"


@pytest.mark.parametrize("changed", [False, True])
def test_results_say_whether_the_mllm_is_the_one_that_the_run_began_with(
    scene: Any, tmp_path: Path, changed: bool
) -> None:
    config = scene.config()
    runtime = scene.runtime(config, scene.half_of_the_pairs_vary)
    digests = iter(["at the start", "at the end" if changed else "at the start"])
    runtime.backbone_digest = lambda: next(digests)
    results = train_on(runtime, config, tmp_path, only_pretrained=True)
    assert results.backbone_unchanged is not changed
