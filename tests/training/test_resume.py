"""Stop, crash and resume: the same bits, and checkpoints that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saga_dist.errors import CheckpointError, Interrupted
from saga_dist.training.coordinator import Coordinator
from saga_dist.types import EncoderTokens
from saga_dist.wire import RunIdentity, read_recording

pytestmark = pytest.mark.integration


def test_four_steps_equal_two_interrupted_and_two_resumed(scene: Any, tmp_path: Path) -> None:
    config = scene.config()
    straight = scene.coordinator(config, tmp_path / "straight")
    selection = straight.run()
    stopped = scene.coordinator(config, tmp_path / "resumed", should_stop=lambda: stopped._runtime.learner.step == 2)
    with pytest.raises(Interrupted, match="stopped after step 2") as stop:
        stopped.run()
    assert stop.value.exit_code == 3
    resumed = scene.coordinator(config, tmp_path / "resumed")
    assert resumed.run() == selection
    assert scene.weights_digest(tmp_path / "resumed", 4) == scene.weights_digest(tmp_path / "straight", 4)
    trained = [
        [
            {name: value for name, value in row.items() if not name.endswith(("_s", "idle_share"))}
            for row in scene.rows(tmp_path / name)
        ]
        for name in ("straight", "resumed")
    ]
    assert trained[0] == trained[1]
    for step in range(4):
        recordings = [
            read_recording(tmp_path / name / "rollouts" / f"step_{step + 1:06d}.arrow")
            for name in ("straight", "resumed")
        ]
        assert [group.completions.token_ids for group in recordings[0]] == [
            group.completions.token_ids for group in recordings[1]
        ]


def test_a_stop_while_rollouts_run_saves_the_last_finished_step(scene: Any, tmp_path: Path) -> None:
    config = scene.config()
    straight = scene.coordinator(config, tmp_path / "straight")
    straight.run()
    asked: list[bool] = []

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        if pair_id.startswith("s000003"):
            asked.append(True)
        return scene.half_of_the_pairs_vary(pair_id, completion, tokens)

    stopped = scene.coordinator(config, tmp_path / "stopped", script, should_stop=lambda: bool(asked))
    with pytest.raises(Interrupted, match="stopped after step 2"):
        stopped.run()
    scene.coordinator(config, tmp_path / "stopped").run()
    assert scene.weights_digest(tmp_path / "stopped", 4) == scene.weights_digest(tmp_path / "straight", 4)


def test_a_checkpoint_out_of_turn_is_written_while_rollouts_run_and_training_goes_on(
    scene: Any, tmp_path: Path
) -> None:
    config = scene.config(steps=3, checkpoint={"every_steps": 3}, evaluation={"every_steps": 3})
    scene.coordinator(config, tmp_path / "straight").run()
    requests: list[bool] = []

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        if pair_id == "s000002.m0.p00" and not completion:
            requests.append(True)
        return scene.half_of_the_pairs_vary(pair_id, completion, tokens)

    warned = scene.coordinator(config, tmp_path / "warned", script)
    warned._runtime.take_checkpoint_request = lambda: bool(requests and requests.pop())
    warned.run()
    assert warned._checkpoints.steps() == [1, 3], "step 2 had begun, and training went on"
    assert scene.weights_digest(tmp_path / "warned", 3) == scene.weights_digest(tmp_path / "straight", 3)


def test_rows_after_the_resumed_step_are_rewritten(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=2, checkpoint={"every_steps": 1})
    scene.coordinator(config, tmp_path).run()
    newest = tmp_path / "checkpoints" / "step_00000002"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/d')  # a crash in the middle of a line
    scene.coordinator(config, tmp_path).run()
    steps = [row["step"] for row in scene.rows(tmp_path) if "loss/dml" in row]
    assert steps == [1, 2]


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint_costs_its_own_steps_only(scene: Any, tmp_path: Path) -> None:
    config = scene.config(checkpoint={"every_steps": 1, "keep": 3})
    selection = scene.coordinator(config, tmp_path).run()
    digest, told = scene.weights_digest(tmp_path, 4), len(scene.rows(tmp_path))
    damage(tmp_path / "checkpoints" / "step_00000004" / "learner.safetensors")
    damage(tmp_path / "checkpoints" / "step_00000003" / "manifest.json")
    trained: list[int] = []
    assert scene.coordinator(config, tmp_path, on_step=lambda result: trained.append(result.step)).run() == selection
    assert trained == [3, 4]
    assert scene.weights_digest(tmp_path, 4) == digest
    assert len(scene.rows(tmp_path)) == told  # rows of the lost steps were dropped and told again
    assert len(list((tmp_path / "checkpoints").glob("step_*.damaged-*"))) == 2


def test_without_a_valid_checkpoint_nothing_starts_afresh(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=1)
    scene.coordinator(config, tmp_path).run()
    damage(tmp_path / "checkpoints" / "step_00000001" / "learner.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint is valid; .*learner\.safetensors: damaged.*; restore"):
        scene.coordinator(config, tmp_path).run()


def failing_saves(coordinator: Coordinator, steps: set[int]) -> None:
    learner = coordinator._runtime.learner
    plain = learner.save

    def save(folder: Path) -> None:
        if learner.step in steps:
            raise OSError(28, "No space left on device")
        plain(folder)

    learner.save = save


def test_a_save_that_fails_ends_no_run_that_has_an_older_one(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=5)
    straight = scene.coordinator(config, tmp_path / "straight")
    straight.run()
    coordinator = scene.coordinator(config, tmp_path / "full")
    failing_saves(coordinator, {2, 3})
    selection = coordinator.run()
    assert scene.weights_digest(tmp_path / "full", 5) == scene.weights_digest(tmp_path / "straight", 5)
    failures = [
        (row["step"], row["checkpoint/failed"]) for row in scene.rows(tmp_path / "full") if "checkpoint/failed" in row
    ]
    assert failures[-1] == (3, 1.0)
    assert {step for step, _ in failures} == {2, 3}
    assert selection.history == straight.selection.history
    assert selection.step not in {2, 3}, "weights that were not kept cannot be selected"
    coordinator.restore_selected()


def test_the_last_save_and_the_first_must_not_fail(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=3, checkpoint={"every_steps": 1, "keep": 2})
    for place, steps, kept in (("first", {1}, []), ("last", {3}, [1, 2])):
        coordinator = scene.coordinator(config, tmp_path / place)
        failing_saves(coordinator, steps)
        with pytest.raises(CheckpointError, match="cannot write the checkpoint .No space left on device.; free space"):
            coordinator.run()
        assert coordinator._checkpoints.steps() == kept
    stopped = scene.coordinator(config, tmp_path / "stopped", should_stop=lambda: stopped._runtime.learner.step == 2)
    failing_saves(stopped, {2})
    with pytest.raises(CheckpointError, match="step_00000002: cannot write the checkpoint"):
        stopped.run()
    scene.coordinator(config, tmp_path / "stopped").run()  # the same command, with room again
    assert scene.coordinator(config, tmp_path / "stopped")._checkpoints.newest().step == 3


def test_checkpoint_of_another_configuration_is_refused(scene: Any, tmp_path: Path) -> None:
    scene.coordinator(scene.config(steps=1), tmp_path).run()
    other = scene.config(steps=1, optimizer={"lr_encoder": 1e-3})
    refusal = (
        "step_00000001: it belongs to another configuration: optimizer.lr_encoder: .* != 0.001; choose a new --run-dir"
    )
    with pytest.raises(CheckpointError, match=refusal):
        scene.coordinator(other, tmp_path).run()


def test_changed_data_is_refused(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=1)
    scene.coordinator(config, tmp_path).run()
    other = RunIdentity(backbone="", tower="", split="of other images", code="")
    with pytest.raises(CheckpointError, match="data set has changed"):
        scene.coordinator(config, tmp_path, identity=other).run()


def test_selection_prefers_the_earlier_step_and_is_restored(scene: Any, tmp_path: Path) -> None:
    config = scene.config(checkpoint={"keep": 1})
    coordinator = scene.coordinator(config, tmp_path)
    selection = coordinator.run()
    best = max(recall for _, recall in selection.history)
    assert selection.step == min(step for step, recall in selection.history if recall == best)
    coordinator.restore_selected()
    assert coordinator._runtime.learner.step == selection.step
