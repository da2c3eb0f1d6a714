"""The screen end to end on a tiny world: choices by validation classes, a table, a file that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.diagnostics.oracle import train_step
from saga_dist.diagnostics.screen import screen_world
from saga_dist.diagnostics.screen_configs import ScreenSetting, load_worlds
from saga_dist.diagnostics.screen_results import (
    ATTENTION,
    BOTH,
    HEADINGS,
    METRIC,
    TEXT,
    Screen,
    ScreenRow,
    gain,
    load_screen,
    table,
)
from saga_dist.errors import ConfigError, DataError
from saga_dist.retrieval.metrics import recall_at_k
from saga_dist.runtime.build import build_learner
from saga_dist.training.evaluation import validation_recall

pytestmark = pytest.mark.integration

WORLD = Path(__file__).resolve().parents[2] / "configs" / "evidence" / "h.toml"
SMALL = (
    "run.steps=2",
    "data.batch_size=8",
    "data.images_per_class=2",
    "data.birds.train_classes=4",
    "data.birds.train_images_per_class=4",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.pairs_per_batch=2",
    "evaluation.every_steps=1",
)


def run(path: Path) -> str:
    settings = [part for override in SMALL for part in ("--set", override)]
    arguments = ["evidence", "screen", str(WORLD), *settings, "--seeds", "2", "--json", str(path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "screen.json"
    output = run(path)
    (world,) = load_screen(path).worlds
    assert (world.world, world.seeds, world.steps, world.num_queries, world.num_classes) == ("h", (0, 1), 2, 100, 50)
    assert list(world.rows) == list(HEADINGS)
    assert len(world.rows[METRIC].tried) == 5  # three poolings, then two more rates with the best of them
    for name, row in world.rows.items():
        assert row.tried[row.setting] == max(row.tried.values())  # nothing but validation chooses
        assert row.validation_recall_at_1[0] == row.tried[row.setting]
        assert len(row.recall_at_1) == len(row.selected_steps) == 2
        assert (row.p_value is None) == (name == METRIC)
        if name in (ATTENTION, BOTH):
            assert all(not setting.startswith("mean") for setting in row.tried)

    # What it reports of a row is what the same training gives when it is written out.
    (loaded,) = load_worlds([WORLD], SMALL)
    config = loaded.varied(ScreenSetting("mlp", 1.0), lambda_lm=0.0, lambda_kl=0.0, seed=0)
    learner = build_learner(config)
    sampler = ClassBalancedSampler(learner.labels("train"), 8, 2, seed=0)
    recalls = []
    for _ in range(2):
        train_step(learner, sampler, config, None)
        recalls.append(validation_recall(learner))
    assert world.rows[METRIC].tried["mlp x1"] == max(recalls)
    before = learner.embed("test", pretrained=True)
    assert world.zero_shot_recall_at_1 == recall_at_k(before.values_IE, before.labels_I).recall[1]

    for heading in HEADINGS.values():
        assert heading in output
    again = run(path)
    assert "in " in again and "already" in again and "validation" not in again.split("Oracle screen")[0]
    assert load_screen(path).worlds == (world,)


def row(*recalls: float, p_value: float | None = None) -> ScreenRow:
    return ScreenRow(
        setting="mlp x1",
        tried={"mlp x1": 0.5},
        selected_steps=(10,) * len(recalls),
        validation_recall_at_1=recalls,
        recall_at_1=recalls,
        p_value=p_value,
    )


def test_mean_and_standard_error_by_hand() -> None:
    assert row(0.2, 0.3, 0.4).mean == pytest.approx(0.3)
    assert row(0.2, 0.3, 0.4).standard_error == pytest.approx(0.1 / 3**0.5)
    assert row(0.2).standard_error is None


def test_a_mean_has_no_weights_to_align() -> None:
    (world,) = load_worlds([WORLD], ["model.pooler=mean", "objective.lambda_kl=0"])
    with pytest.raises(ConfigError, match="a mean has no weights to align"):
        screen_world(world, seeds=(0,))


def test_a_file_that_is_no_screen_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "screen.json"
    path.write_text('{"worlds": 3}', "utf-8")
    with pytest.raises(DataError, match="not a screen") as caught:
        load_screen(path)
    assert "\n" not in str(caught.value)


def test_table_shows_gains_in_points() -> None:
    from rich.console import Console

    from saga_dist.diagnostics.screen_results import WorldResult

    rows = {METRIC: row(0.2, 0.3), TEXT: row(0.3, 0.4, p_value=0.0004), ATTENTION: row(0.2, 0.2, p_value=0.25)}
    rows[BOTH] = row(0.5, 0.5, p_value=0.04)
    result = WorldResult(
        world="h",
        digest="d",
        seeds=(0, 1),
        steps=2,
        pairs_per_step=2,
        num_queries=100,
        num_classes=50,
        zero_shot_recall_at_1=0.031,
        rows=rows,
    )
    screen = Screen(command="c").with_result(result, command="c")
    assert screen.has("h", "d", range(2)) and not screen.has("h", "e", range(2)) and not screen.has("h", "d", range(3))
    console = Console(width=260)
    with console.capture() as captured:
        console.print(table(screen))
    line = next(line for line in captured.get().splitlines() if line.strip().startswith("h "))
    expected = (
        "h 3.1 25.0 ± 5.0 35.0 ± 5.0 (+10.0, p < 0.001 over classes, < 0.001 over 2 seeds) "
        "20.0 ± 0.0 (-5.0, p 0.500 over 2 seeds, 0.250 over classes) "
        "50.0 ± 0.0 (+25.0, p 0.126 over 2 seeds, 0.040 over classes)"
    )
    assert " ".join(line.split()) == expected
    # Gains of 10 and 10 points, of 0 and -10 (t = -1, p = 1 - 2 atan(1) / pi), of 30 and 20 (t = 5).
    assert gain(rows[TEXT], rows[METRIC]) == "+10.0, p < 0.001 over classes, < 0.001 over 2 seeds"
    assert gain(rows[BOTH], rows[METRIC]) == "+25.0, p 0.126 over 2 seeds, 0.040 over classes"
    assert gain(row(0.3, p_value=0.01), row(0.2)) == "+10.0, p 0.010 over classes, one run"
