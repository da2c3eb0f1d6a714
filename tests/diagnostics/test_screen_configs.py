"""The shipped worlds: each is a run configuration, fit to choose on validation classes and to test on many images."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import load_config
from saga_dist.diagnostics.screen_configs import ScreenSetting, load_worlds
from saga_dist.diagnostics.screen_results import load_screen
from saga_dist.errors import ConfigError
from saga_dist.sweep.plan import plan
from saga_dist.sweep.table import load_table

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "evidence"
WORLDS = load_worlds(sorted(path for path in FOLDER.glob("*.toml") if not path.name.startswith("table_")))


def test_there_are_at_least_six_and_all_differ_in_data_or_attention() -> None:
    assert len(WORLDS) >= 6
    told_apart = {(w.config.data, w.config.objective.kl_layer, w.config.model.pooler_key) for w in WORLDS}
    assert len(told_apart) == len(WORLDS)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_each_has_many_test_images_validation_classes_and_dry_runs(world: object) -> None:
    assert hasattr(world, "config") and hasattr(world, "path")
    birds = world.config.data.birds
    assert birds.test_images_per_class * 50 >= 2000
    assert birds.val_images_per_class * 32 >= 500
    assert world.config.run.steps % world.config.evaluation.every_steps == 0
    result = CliRunner().invoke(app, ["train", str(world.path), "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "the configuration is valid" in result.output


def test_without_files_the_shipped_worlds_are_read_from_every_directory_and_tables_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (FOLDER.parents[1], tmp_path):
        monkeypatch.chdir(place)
        assert [world.name for world in load_worlds([])] == [world.name for world in WORLDS]


def test_a_setting_changes_pooling_rate_weights_and_seed_and_nothing_else() -> None:
    (world,) = load_worlds([FOLDER / "g16.toml"], ["run.steps=7"])
    assert world.setting == ScreenSetting("mlp", 1.0)
    config = world.varied(ScreenSetting("linear", 3.0), lambda_lm=0.0, lambda_kl=0.5, seed=4)
    changed = {line.partition(":")[0] for line in config.differences(world.config)}
    assert changed == {
        "model.pooler_key",
        "objective.lambda_kl",
        "objective.lambda_lm",
        "optimizer.lr_encoder",
        "run.seed",
    }
    assert config.optimizer.lr_encoder == pytest.approx(3e-4)
    assert config.run.steps == 7
    mean = world.varied(ScreenSetting("mean", 1.0), lambda_lm=1.0, lambda_kl=0.0, seed=0)
    assert mean.model.pooler == "mean"


def test_what_is_no_world_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="the built-in birds and their words"):
        load_worlds([FOLDER / "h.toml"], ["data.layout=folder", "data.root=/data"])
    with pytest.raises(ConfigError, match="each name once"):
        load_worlds([FOLDER / "h.toml", FOLDER / "h.toml"])


def test_the_shipped_screen_is_of_these_worlds_and_reads() -> None:
    screen = load_screen(FOLDER / "screen.json")
    assert {one.world for one in screen.worlds} == {world.name for world in WORLDS}
    for one in screen.worlds:
        assert one.num_queries >= 2000
        for row in one.rows.values():
            assert row.tried[row.setting] == max(row.tried.values())


LAMBDAS = {"metric": (0.0, 0.0), "grpo": (1.0, 0.0), "kl": (0.0, 3.0), "saga": (1.0, 3.0)}
ROWS = {f"{row}_{key}": (key, 16, *weights) for key in ("mlp", "linear") for row, weights in LAMBDAS.items()}
ROWS |= {f"{row}_mlp_p32": ("mlp", 32, *LAMBDAS[row]) for row in ("grpo", "kl", "saga")}


@pytest.mark.parametrize("name", ["h", "h90", "h0", "g16", "g8"])
def test_tables_have_the_rows_of_table_2_for_both_keys_and_more_pairs(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"table_{name}.toml"
    table = load_table(path)
    cells = plan(table, path, tmp_path, overrides=(), seeds=(0,))
    paths = [load_config(path.parent / table.config, table.overrides_of(seed)).model.path for seed in table.seeds]
    assert len(paths) >= 5 and min(paths.count("standin"), paths.count("standin-1")) >= 2
    found = {
        cell.variant.name: (
            cell.config.model.pooler_key,
            cell.config.rollout.pairs_per_batch,
            cell.config.objective.lambda_lm,
            cell.config.objective.lambda_kl,
        )
        for cell in cells
        if not cell.variant.pretrained
    }
    assert found == ROWS
    for variant in table.variant:
        if not variant.pretrained:
            row, key = variant.name.split("_")[:2]
            # Each against the metric loss with its own key, all three losses against the two without GRPO as well.
            assert row == "metric" or table.opponents(variant)[0] == f"metric_{key}"
            assert row != "saga" or table.opponents(variant)[1] == variant.name.replace("saga", "kl")
    # Equal start, steps, augmentation and tuning: rows differ in what the table says and in nothing else.
    base = cells[1].config
    changed = {line.partition(":")[0] for cell in cells[1:] for line in cell.config.differences(base)}
    pairs = {"rollout.pairs_per_batch", "rollout.contributing_groups"}
    assert changed == {"model.pooler_key", "objective.lambda_lm", "objective.lambda_kl", *pairs}
