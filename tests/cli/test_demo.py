"""The demo, two steps of every row in one process: the same code path as ``make demo`` without Ray and vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saga_dist.cli.demo_rows import run_demo
from saga_dist.models.encoder import load
from saga_dist.retrieval.results import Results
from saga_dist.wire import read_recording

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    small = ["data.birds.test_images_per_class=4", "data.birds.probe_images=200", "evaluation.verdict_pairs=40"]
    one_process = ["runtime.kind=serial", "rollout.engine=transformers", "run.steps=2"]
    return run_dir, run_demo(run_dir, [*small, *one_process], ablations=True)


def test_every_row_is_measured_at_equal_steps(demo: tuple[Path, Results]) -> None:
    run_dir, results = demo
    assert Results.load(run_dir / "results.json") == results
    names = [method.name for method in results.methods]
    assert names == ["pre-trained", "metric loss only", "+ GRPO only", "+ KL only", "SAGA"]
    assert [method.optimizer_steps for method in results.methods] == [0, 2, 2, 2, 2]
    for method in results.methods:
        assert method.splits["test"].num_queries == 200
        assert method.splits["test"].num_classes == 50
        assert method.verdicts["test"].num_same == method.verdicts["test"].num_different == 20
        assert method.verdicts["test"].json_valid_share >= 0.95
        assert method.probes is not None
        assert set(method.probes) == {"bill", "crown", "breast", "wing", "tail", "legs"}
    assert results.backbone_unchanged is True


def test_only_rows_with_rollouts_have_recordings_and_rewards(demo: tuple[Path, Results]) -> None:
    run_dir, _ = demo
    groups = read_recording(run_dir / "rollouts" / "step_000001.arrow")
    assert len(groups) == 48
    assert sum(group.pair.same for group in groups) == 24
    baselines = sorted(path.name for path in (run_dir / "rows").iterdir() if path.name.startswith("metric_loss"))
    assert len(baselines) == 3
    for name in baselines:
        assert not (run_dir / "rows" / name / "rollouts").exists()
        rows = [json.loads(line) for line in (run_dir / "rows" / name / "metrics.jsonl").read_text().splitlines()]
        assert all("rollout/reward_mean" not in row for row in rows)


def test_the_encoder_it_leaves_is_usable(demo: tuple[Path, Results]) -> None:
    run_dir, _ = demo
    encoder = load(run_dir / "model")
    assert encoder.embedding_dim == 64
