"""Facts about a run's training, from its configuration and its ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.retrieval.results import MethodResult, TrainingFacts
from saga_dist.retrieval.training_text import training_cells, training_lines
from saga_dist.training.training_facts import training_facts

ROOT = Path(__file__).resolve().parents[2]


def config(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "birds.toml", ["run.steps=3", "data.batch_size=32", *overrides])


def write_ledger(run_dir: Path, *micro_batches: int) -> None:
    rows = [{"step": step, "micro_batches": count} for step, count in enumerate(micro_batches, start=1)]
    (run_dir / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_step_with_rollouts_sees_all_of_its_micro_batches(tmp_path: Path) -> None:
    """1 + 8 + 2 micro-batches of 32 images, where the metric loss alone takes 3."""
    write_ledger(tmp_path, 1, 8, 2)
    found = training_facts(config("rollout.max_micro_batches=8"), tmp_path)
    assert found == TrainingFacts(
        metric_loss="potential_field", optimizer_steps=3, images_seen=352, image_height=80, image_width=80,
        pretraining="standin",
    )  # fmt: skip
    alone = config("rollout.max_micro_batches=8", "objective.lambda_lm=0", "objective.lambda_kl=0")
    assert training_facts(alone, tmp_path).images_seen == 96
    assert training_facts(config("rollout.max_micro_batches=1"), tmp_path).images_seen == 96


@pytest.mark.parametrize("micro_batches", [(), (1, 8), (1, 8, 2, 1)])
def test_images_are_not_known_without_the_whole_ledger(tmp_path: Path, micro_batches: tuple[int, ...]) -> None:
    if micro_batches:
        write_ledger(tmp_path, *micro_batches)
    assert training_facts(config("rollout.max_micro_batches=8"), tmp_path).images_seen is None


def test_a_pretrained_encoder_saw_nothing(tmp_path: Path) -> None:
    found = training_facts(config(), tmp_path, pretrained=True)
    assert (found.metric_loss, found.optimizer_steps, found.images_seen) == (None, 0, 0)
    assert (found.image_height, found.pretraining) == (80, "standin")


def test_the_start_is_named_by_folder_or_by_revision(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    assert training_facts(config(f"model.path={folder}"), tmp_path).pretraining == "weights"
    hub = config("model.path=Qwen/Qwen3-VL-8B-Instruct", "model.revision=abc")
    assert training_facts(hub, tmp_path).pretraining == "Qwen/Qwen3-VL-8B-Instruct@abc"
    assert training_facts(config("objective.lambda_dml=0"), tmp_path).metric_loss is None


def test_cells_name_all_values_of_several_runs() -> None:
    one, other = (
        TrainingFacts(optimizer_steps=3, images_seen=images, image_height=height, image_width=128, pretraining=start)
        for images, height, start in ((17_600, 256, "a"), (35_200, 128, "b"))
    )
    assert training_cells([one, other]) == ["–", "17,600–35,200", "3", "256×128, 128", "a, b"]
    assert training_cells([one, TrainingFacts()]) == ["–", "–", "–", "256×128, –", "a, –"]
    assert training_cells([]) == ["–"] * 5
    method = MethodResult(name="SAGA", splits={}, seeds=(0,), wall_s=1.0, training=one)
    assert training_lines([method, method.model_copy(update={"training": None})]) == [
        "SAGA: metric loss –, images seen 17,600, steps 3, px 256×128, pre-training a"
    ]


@pytest.mark.parametrize(
    ("selected", "text"),
    [
        ((100, 100), "100"),
        ((10, 10), "100, model of step 10"),
        ((10, 100), "100, model of step 10–100"),
        ((None, 10), "100"),
    ],
)
def test_steps_and_the_step_of_the_model_are_both_shown(selected: tuple[int | None, ...], text: str) -> None:
    facts = [TrainingFacts(optimizer_steps=100, selected_step=step) for step in selected]
    assert training_cells(facts)[2] == text


def test_the_step_of_the_model_is_one_of_the_facts(tmp_path: Path) -> None:
    assert training_cells([training_facts(config(), tmp_path, pretrained=True)])[2] == "0"
    assert training_cells([training_facts(config(), tmp_path, selected_step=2)])[2] == "3, model of step 2"
