"""The shipped configurations of the benchmarks: the paper's settings, and each one trains on a tree of its layout.

Trees, model and step are small, the rest is what the file says; all that is changed for that stands in ``TINY``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import RunConfig, load_config
from saga_dist.data.layouts import aircraft, cars, cub, inat, inshop, sop
from saga_dist.data.layouts.division import PublishedSplit
from saga_dist.data.prompts import PromptSpec
from saga_dist.models.families.base import Family
from saga_dist.protocols import Embeddings
from saga_dist.runtime import build
from saga_dist.runtime.run import evaluate_encoder, train
from saga_dist.training.evaluation import retrieval_result
from saga_dist.types import EncoderTokens
from saga_dist.workers.engines.scripted import ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]

PUBLISHED: dict[str, PublishedSplit] = {
    "cub": cub.PUBLISHED,
    "cars": cars.PUBLISHED,
    "aircraft": aircraft.PUBLISHED,
    "inat_aves": inat.PUBLISHED,
    "sop": sop.PUBLISHED,
    "inshop": inshop.PUBLISHED,
}
NAMES = sorted(PUBLISHED)

# Everything that a tiny run changes, besides model.path and data.root.
TINY: dict[str, Any] = {
    "run.steps": 2,
    "data.image_size": 80,
    "data.batch_size": 4,
    "data.images_per_class": 2,
    "model.dtype": "float32",
    "model.device": "cpu",
    "model.embedding_dim": 16,
    "objective.kl_layer": 1,
    "rollout.engine": "transformers",
    "rollout.group_size": 2,
    "rollout.pairs_per_batch": 2,
    "rollout.max_micro_batches": 1,
    "rollout.max_tokens": 8,
    "runtime.kind": "serial",
    "runtime.threads": 1,
}
SMALL_DATA_NO_GPU = [
    "data.batch_size=4",
    "data.images_per_class=2",
    "rollout.pairs_per_batch=2",
    "rollout.num_gpus=0",
    "runtime.learner_num_gpus=0",
]
"""Overrides with which a shipped configuration is valid on a small tree and a machine without GPUs."""
METRIC_LOSS_ALONE = {"objective.lambda_lm": 0.0, "objective.lambda_kl": 0.0}
ROOM_FOR_AN_ANSWER = {"rollout.max_tokens": 512}  # its letters are single tokens of the tiny model
A_SCRIPT_IS_NO_MODEL = {"rollout.max_log_prob_gap": 1e9}  # the start-up check would see the difference


@pytest.fixture(scope="module")
def make_data(layout_makers: dict[str, Callable[[Path], object]]) -> Callable[[str, Path], Path]:
    """Makes a small tree in the layout of a shipped configuration: ``make_data(name, folder)``."""

    def make(name: str, folder: Path) -> Path:
        layout = {"inat_aves": "inat"}.get(name, name)
        layout_makers[layout](folder)
        return folder

    return make


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the vocabularies of sop and inshop are named from here


def shipped(name: str) -> RunConfig:
    return load_config(f"configs/{name}.toml")


def tiny(name: str, model: Path, data: Path, **changes: Any) -> RunConfig:
    settings = {**TINY, "model.path": str(model), "data.root": str(data), **changes}
    return load_config(f"configs/{name}.toml", [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_papers(name: str) -> None:
    config = shipped(name)
    rollout, optimizer, objective, data = config.rollout, config.optimizer, config.objective, config.data
    assert (rollout.group_size, rollout.contributing_groups) == (8, 8)
    assert (rollout.temperature, rollout.top_p, rollout.max_tokens) == (0.7, 0.95, 1024)
    assert (data.image_size, data.batch_size, data.val_fraction) == (224, 64, 0.0)
    assert (data.flip, data.shift, data.crop, data.color_jitter, data.fast_jpeg) == (False, 0.0, 1.0, 0.0, False)
    assert (optimizer.lr_encoder, optimizer.lr_pooler, optimizer.clip_norm) == (2e-5, 1e-4, 1.0)
    assert (optimizer.schedule, optimizer.warmup_fraction) == ("cosine", 0.05)
    assert (objective.lambda_dml, objective.lambda_lm, objective.lambda_kl) == (1.0, 1.0, 1.0)
    assert (objective.metric_loss, objective.kl_layer) == ("potential_field", 26)
    assert objective.metric_params["proxies_per_class"] == (2 if name in ("sop", "inshop") else 15)
    model = config.model
    assert (model.path, model.dtype, model.embedding_dim) == ("Qwen/Qwen3-VL-8B-Instruct", "bfloat16", 4096)
    assert (model.pooler, model.pooler_key, model.pooler_layer_norm) == ("attention", "linear", False)
    assert (config.prompt.variant, config.prompt.order) == ("structured", "images_first")
    assert config.runtime.kind == "ray"
    assert rollout.engine == "vllm"


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_three_epochs_of_the_published_training_images(name: str) -> None:
    config = shipped(name)
    assert config.run.steps == math.ceil(3 * PUBLISHED[name].train_images / config.data.batch_size)


@pytest.mark.parametrize(
    ("name", "item", "verdict_key", "attributes"),
    [
        ("cub", "bird", "same_species", 28),
        ("inat_aves", "bird", "same_species", 28),
        ("cars", "car", "same_model", 17),
        ("aircraft", "aircraft", "same_variant", 17),
        ("sop", "product", "same_product", 16),
        ("inshop", "garment", "same_item", 19),
    ],
)
def test_prompts_fit_the_data(name: str, item: str, verdict_key: str, attributes: int) -> None:
    words = build.build_prompt(shipped(name)).vocabulary
    assert (words.item, words.verdict_key, len(words.attributes)) == (item, verdict_key, attributes)


# ---------------------------------------------------------------------- on data


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_counts_the_tree(name: str, make_data: Callable[[str, Path], Path], tmp_path: Path) -> None:
    data = make_data(name, tmp_path / "data")
    result = CliRunner().invoke(
        app,
        ["train", f"configs/{name}.toml", f"data.root={data}", *SMALL_DATA_NO_GPU, "--dry-run"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    splits = build.build_splits(load_config(f"configs/{name}.toml", [f"data.root={data}"]).data, seed=0)
    (line,) = [line for line in result.output.splitlines() if line.startswith("data ")]
    assert splits.names == (("train", "test", "gallery") if name == "inshop" else ("train", "test"))
    for part in splits.names:
        images = splits.named(part)
        assert f"{part} {len(images.class_names)} classes, {len(images)} images" in line
    assert "validation" not in line
    assert "Qwen/Qwen3-VL-8B-Instruct at main (hub; looked up when training starts)" in result.output


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_with_a_real_engine(
    name: str, make_data: Callable[[str, Path], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config, run_dir = tiny(name, tiny_checkpoint, make_data(name, tmp_path / "data")), tmp_path / "run"
    results = train(config, run_dir)
    first, second = rows(run_dir)
    for row in (first, second):
        assert math.isfinite(row["loss/dml"])
        assert row["gradient/total_norm"] > 0
        assert row["rollout/groups"] == 2
        assert row["rollout/tokens"] > 0
    assert results.backbone_unchanged is True
    pretrained, trained = results.method("pre-trained"), results.method("trained")
    # Without validation classes there is nothing to choose by: the last step is the result.
    assert (pretrained.selected_step, trained.selected_step, trained.optimizer_steps) == (0, 2, 2)
    assert set(pretrained.splits) == set(trained.splits) == {"test"}
    assert (run_dir / "checkpoints" / "latest").read_text().strip() == "step_00000002"
    # What was saved is what was measured.
    assert evaluate_encoder(run_dir, "test").splits["test"] == trained.splits["test"]


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_with_answers_in_the_words_of_the_prompt(
    name: str,
    make_data: Callable[[str, Path], Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights never answer; with one right and one wrong answer a pair, all three losses meet every prompt."""

    def scripted_engine(config: RunConfig, family: Family) -> ScriptedEngine:
        prompt, tokenizer = build.build_prompt(config), family.load_tokenizer()

        def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
            return answer(prompt, "yes" if completion == 0 else "no")

        return ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id)

    monkeypatch.setattr(build, "build_engine", scripted_engine)
    run_dir = tmp_path / "run"
    results = train(
        tiny(name, tiny_checkpoint, make_data(name, tmp_path / "data"), **ROOM_FOR_AN_ANSWER, **A_SCRIPT_IS_NO_MODEL),
        run_dir,
    )
    for row in rows(run_dir):
        assert row["rollout/contributing_share"] == 1.0
        assert row["rollout/verdict_accuracy_same"] == row["rollout/verdict_accuracy_different"] == 0.5
        assert row["rollout/json_valid_share"] == 1.0
        assert row["gradient/grpo_at_tokens_norm"] > 0
        assert row["loss/kl"] > 0
        assert math.isfinite(row["loss/grpo"])
    assert results.backbone_unchanged is True


def test_a_finished_run_without_validation_classes_says_the_same_again(
    make_data: Callable[[str, Path], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data, run_dir = make_data("cub", tmp_path / "data"), tmp_path / "run"
    config = tiny("cub", tiny_checkpoint, data, **METRIC_LOSS_ALONE)
    first, again = (train(config, run_dir).method("trained") for _ in range(2))
    assert again.splits == first.splits  # a fresh learner, brought to the last step
    assert again.selected_step == first.selected_step == 2
    assert len(rows(run_dir)) == 2


def answer(prompt: PromptSpec, verdict: str) -> str:
    attribute = prompt.vocabulary.attribute_keys[0]
    values = {
        prompt.key_a: {attribute: "red"},
        prompt.key_b: {attribute: "blue"},
        "differences": attribute,
        "confidence": "high",
        "reasoning": "So.",
        prompt.verdict_key: verdict,
    }
    return json.dumps({key: values[key] for key in prompt.keys})


# ---------------------------------------------------------------------- a gallery of its own


def test_queries_search_the_gallery_and_are_not_left_out_of_it() -> None:
    # Each query has its double in the gallery; among themselves the nearest is of the other class.
    queries = Embeddings(np.float32([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]]), np.array([0, 1, 1, 0]))
    gallery = Embeddings(np.float32([[1, 0], [0, 1], [0.8, 0.6]]), np.array([0, 1, 1]))
    alone = retrieval_result(queries, seed=0, resamples=100)
    found = retrieval_result(queries, gallery, seed=0, resamples=100)
    assert (alone.recall_at_1, alone.num_unfindable) == (0.0, 0)
    assert (found.recall_at_1, found.recall_at_2, found.recall_at_4) == (0.75, 0.75, 1.0)
    assert (found.num_queries, found.num_classes) == (4, 2)
    assert found.nmi == alone.nmi  # of the queries alone


def test_in_shop_results_are_those_of_queries_against_the_gallery(
    make_data: Callable[[str, Path], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = make_data("inshop", tmp_path / "data")
    listed = data / "Eval" / "list_eval_partition.txt"
    count, header, *lines = listed.read_text().splitlines()
    kept = [line for line in lines if not ("id_00000008" in line and line.endswith("gallery"))]
    listed.write_text("\n".join([str(len(kept)), header, *kept]) + "\n")
    assert int(count) - len(kept) == 2

    config = tiny("inshop", tiny_checkpoint, data, **METRIC_LOSS_ALONE)
    results = train(config, tmp_path / "run")
    learner = build.build_learner(config)
    queries, gallery = (learner.embed(split, pretrained=True) for split in ("test", "gallery"))
    similarity_QG = queries.values_IE.astype(np.float64) @ gallery.values_IE.astype(np.float64).T
    same_QG = queries.labels_I[:, None] == gallery.labels_I
    best_same_Q = np.where(same_QG, similarity_QG, -np.inf).max(1)
    rank_Q = (np.where(same_QG, -np.inf, similarity_QG) >= best_same_Q[:, None]).sum(
        1
    )  # strangers before the first hit
    findable_Q = same_QG.any(1)
    found = results.method("pre-trained").splits["test"]
    assert found.num_queries == 6
    assert found.num_unfindable == int((~findable_Q).sum()) == 2
    for k, recall in ((1, found.recall_at_1), (2, found.recall_at_2), (4, found.recall_at_4)):
        assert recall == pytest.approx(float(((rank_Q < k) & findable_Q).mean()))
