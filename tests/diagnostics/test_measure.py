"""A whole run on the bench, from its directory to table, file and report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from saga_dist.checkpoint.store import CheckpointStore
from saga_dist.cli.main import app
from saga_dist.config import load_run_config
from saga_dist.data.sampling import training_sampler
from saga_dist.diagnostics.gradients import encode_recorded, parameter_gradients
from saga_dist.diagnostics.loss_gradients import learner_alone
from saga_dist.diagnostics.measure import measure
from saga_dist.diagnostics.recorded_steps import recorded_steps
from saga_dist.diagnostics.schema import EMBEDDING, MEAN, PRETRAINED, READ_OUT, TOKENS, TRAINED, Evidence
from saga_dist.errors import CheckpointError, DataError
from saga_dist.metrics.log import MetricsLog
from saga_dist.models.encoder import load
from saga_dist.report.build import Settings, report_page
from saga_dist.retrieval.metrics import recall_at_k
from saga_dist.runtime.build import build_splits
from saga_dist.standin.world import split

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shown(finished_run: Path) -> str:
    """What the command prints; evidence.json is there afterwards."""
    result = CliRunner().invoke(app, ["evidence", "show", str(finished_run), "--images", "150"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def evidence(finished_run: Path, shown: str) -> Evidence:
    return Evidence.load(finished_run / "evidence.json")


def test_every_instrument_measured(evidence: Evidence, shown: str) -> None:
    assert evidence.notes == ()
    assert (evidence.num_images, evidence.num_classes) == (150, 50)
    assert evidence.seconds > 0
    assert {(one.encoder, one.space) for one in evidence.recalls} == {
        (TRAINED, EMBEDDING), (TRAINED, MEAN), (TRAINED, READ_OUT), (PRETRAINED, MEAN), (PRETRAINED, READ_OUT)
    }  # fmt: skip
    assert evidence.probes is not None and evidence.gradients is not None and evidence.spread is not None
    assert evidence.probes.attributes == ("bill", "crown", "breast", "wing", "tail", "legs")
    assert [change.space for change in evidence.probes.changes] == [MEAN, TOKENS, READ_OUT]
    for title in ("Recall@1", "Attribute accuracy", "Where attention lies", "Gradient norms", "Cosines", "Training"):
        assert title in shown
    assert "evidence.json: measured in" in shown


def test_recall_of_z_is_that_of_the_saved_encoder(finished_run: Path, evidence: Evidence) -> None:
    """model/ holds the selected step's weights, and so does the checkpoint that is measured."""
    birds = split("test", load_run_config(finished_run).data.birds)
    values = load(finished_run / "model").encode(list(birds.images))
    (found,) = [one for one in evidence.recalls if one.space == EMBEDDING]
    assert found.recall_at_1 == pytest.approx(recall_at_k(values, birds.labels, ks=(1,)).recall[1])
    results = json.loads((finished_run / "results.json").read_text())
    assert evidence.step == results["methods"][1]["selected_step"]


def test_changes_are_differences(evidence: Evidence) -> None:
    assert evidence.probes is not None
    columns = {(column.encoder, column.space): column for column in evidence.probes.columns}
    for change in evidence.probes.changes:
        after, before = columns[TRAINED, change.space], columns[PRETRAINED, change.space]
        np.testing.assert_allclose(change.difference, np.subtract(after.accuracy, before.accuracy), atol=1e-9)
        assert change.mean == pytest.approx(after.mean - before.mean)


def test_the_frozen_mllm_reads_what_no_pooled_vector_shows(evidence: Evidence) -> None:
    """The stand-in was taught to name the parts, by attention to them."""
    recalls = {(one.encoder, one.space): one.recall_at_1 for one in evidence.recalls}
    assert recalls[PRETRAINED, READ_OUT] > recalls[PRETRAINED, MEAN] + 0.3
    looks = {(one.who, one.encoder): one for one in evidence.looks}
    teacher, nobody = looks["teacher, at a part's word", PRETRAINED], looks["uniform", ""]
    assert teacher.part > 0.6 > 10 * nobody.part / 2
    assert teacher.bird > 0.8
    assert nobody.entropy == pytest.approx(math.log(25))


def test_gradients_reach_what_the_method_says(evidence: Evidence) -> None:
    assert evidence.gradients is not None and evidence.spread is not None
    dml, grpo, kl = evidence.gradients.norms
    assert [one.loss for one in (dml, grpo, kl)] == ["dml", "grpo", "kl"]
    assert [one.weight for one in (dml, grpo, kl)] == [1.0, 1.0, 3.0]
    assert grpo.pooler == 0 and kl.tower == 0
    assert min(dml.tower, dml.pooler, grpo.tower, kl.pooler) > 0
    cosines = {one.losses: one for one in evidence.gradients.cosines}
    assert cosines["grpo", "kl"].encoder == 0
    assert cosines["dml", "kl"].tower is None
    assert evidence.spread.uniform == pytest.approx(math.log(25))
    assert 0 < evidence.spread.teacher < evidence.spread.uniform


def test_step_cosines_are_those_of_the_recorded_steps(finished_run: Path, evidence: Evidence) -> None:
    text, dml, grpo, kl = evidence.step_cosines
    assert [(one.loss, one.part) for one in (text, dml, grpo, kl)] == [
        ("text", "tower"), ("dml", "tower"), ("grpo", "tower"), ("kl", "pooler")
    ]  # fmt: skip
    assert {one.num_steps for one in evidence.step_cosines} == {2}
    assert text.along_text is None and kl.along_text is None
    config = load_run_config(finished_run)
    sampler = training_sampler(config, build_splits(config.data, seed=config.run.seed).train.labels_I)
    checkpoint = CheckpointStore(finished_run / "checkpoints", keep=1).best()
    assert checkpoint is not None
    learner, units = learner_alone(config, checkpoint, "dml"), []
    for step in recorded_steps(config, finished_run, sampler, near=0):
        encode_recorded(learner, step.batches)
        gradient = parameter_gradients(learner, [])["tower"]
        units.append(gradient / gradient.norm())
    assert dml.between_steps == pytest.approx(float(units[0] @ units[1]), abs=1e-5)


def test_norms_and_cosines_make_up_the_norm_that_training_saw(finished_run: Path, tmp_path: Path) -> None:
    """The weights of the checkpoint of step 1 made the recording of step 2: all is on-policy."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    (run / "checkpoints" / "best").write_text("step_00000001\n")
    found = measure(run, num_images=100)
    assert found.step == 1 and found.gradients is not None and found.gradients.step == 2
    (row,) = [row for row in MetricsLog(run / "metrics.jsonl").rows() if row["step"] == 2 and "loss/grpo" in row]
    assert found.gradients.num_groups == row["rollout/selected"]
    dml, grpo, kl = found.gradients.norms
    cosines = {one.losses: one.encoder for one in found.gradients.cosines}
    weighted = np.array([one.weight * one.encoder for one in (dml, grpo, kl)])
    between = np.array([cosines["dml", "grpo"], cosines["dml", "kl"], cosines["grpo", "kl"]], float)
    squared = (weighted**2).sum() + 2 * (
        weighted[0] * weighted[1] * between[0] + weighted[0] * weighted[2] * between[1]
    )
    assert math.sqrt(squared) == pytest.approx(row["gradient/total_norm"], rel=1e-3)


def test_the_report_draws_it(finished_run: Path, evidence: Evidence) -> None:
    page = report_page(finished_run, Settings(groups=2, rows=0)).html
    assert "Attribute accuracy" in page and "Not measured yet" not in page
    shutil.copy(finished_run / "evidence.json", finished_run / "kept.json")
    (finished_run / "evidence.json").unlink()
    try:
        assert (
            "Not measured yet: saga-dist evidence show RUN."
            in report_page(finished_run, Settings(groups=2, rows=0)).html
        )
        (finished_run / "evidence.json").write_text('{"step": "one"}')
        with pytest.raises(DataError, match=r"evidence\.json: step"):
            report_page(finished_run, Settings(groups=2, rows=0))
    finally:
        shutil.move(finished_run / "kept.json", finished_run / "evidence.json")


@pytest.mark.slow
def test_without_recordings_only_the_gradients_are_missing(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("rollouts", "metrics.jsonl"))
    found = measure(run, num_images=100)
    assert found.gradients is None and found.spread is None and found.steps == ()
    assert found.probes is not None and found.looks
    assert found.notes == (
        "gradients, entropy of the targets: no recorded group that carries a gradient",
        "verdicts and contributing groups: the run has no step with rollouts",
    )


def test_a_run_without_checkpoint_is_one_line(finished_run: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no checkpoint; expected step_"):
        measure(tmp_path, num_images=100)
