"""Tuned variants: for each seed the option that is best on validation classes, and what is left of a sweep."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saga_dist.errors import ConfigError, DataError
from saga_dist.retrieval.first_hits import HITS_NAME, FirstHits, save_hits
from saga_dist.retrieval.results import RESULTS_NAME, TRAINED, MethodResult, Results, SplitResult
from saga_dist.sweep import plan as plan_module
from saga_dist.sweep import runner
from saga_dist.sweep.forecast import expected_seconds, forecast
from saga_dist.sweep.plan import Cell, check, plan
from saga_dist.sweep.render import choices, markdown
from saga_dist.sweep.summary import summarise
from saga_dist.sweep.table import Table, load_table
from saga_dist.utils.directory_owner import OWNER_NAME
from saga_dist.utils.owner_record import Owner

BIRDS = Path(__file__).resolve().parents[2] / "configs" / "birds.toml"
TABLE = f"""
title = "Tuned"
config = "{BIRDS}"
set = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
seeds = [0, 1]
baseline = "plain"
[[variant]]
name = "plain"
label = "one rate"
[[variant]]
name = "tuned"
label = "tuned"
options = [["optimizer.lr_encoder=3e-4"], ["optimizer.lr_encoder=2e-4", "model.pooler=mean"], ["run.images=640"]]
"""


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return path


def planned(path: Path, *overrides: str) -> tuple[Table, tuple[Cell, ...]]:
    table = load_table(path)
    return table, plan(table, path, path.parent / "out", overrides=overrides, seeds=())


def finish(cell: Cell, *, test_hits: int, val: float | None, wall_s: float = 1.0, unfindable: int = 0) -> None:
    """Writes results in which ``test_hits`` of four queries have a hit at rank 1."""
    splits = {name: split for name, split in (("test", test_hits / 4), ("val", val)) if split is not None}
    method = MethodResult(
        name=TRAINED,
        splits={
            name: SplitResult(
                recall_at_1=recall, recall_at_2=1.0, recall_at_4=1.0, recall_at_8=1.0, nmi=0.5,
                confidence_interval=(0.0, 1.0), num_queries=4, num_classes=2, num_unfindable=unfindable,
            )
            for name, recall in splits.items()
        },
        seeds=(cell.seed,),
        wall_s=wall_s,
    )  # fmt: skip
    cell.directory.mkdir(parents=True)
    ranks = np.array([1] * test_hits + [2] * (4 - test_hits), np.uint8)
    save_hits(cell.directory / HITS_NAME, {(TRAINED, "test"): FirstHits(np.array([0, 0, 1, 1]), ranks)})
    Results(methods=[method]).save(cell.directory / RESULTS_NAME)


def test_options_are_cells_of_their_own(table_file: Path) -> None:
    _, cells = planned(table_file)
    assert [cell.name for cell in cells[:4]] == [
        "plain/seed_0", "tuned/option_0/seed_0", "tuned/option_1/seed_0", "tuned/option_2/seed_0",
    ]  # fmt: skip
    assert len(cells) == 8
    assert [(cell.config.optimizer.lr_encoder, cell.config.model.pooler) for cell in cells[1:3]] == [
        (3e-4, "attention"), (2e-4, "mean"),
    ]  # fmt: skip
    assert cells[3].config.run.steps == 640 // cells[3].config.data.batch_size


def test_each_seed_has_its_best_option_on_validation_classes(table_file: Path) -> None:
    table, cells = planned(table_file)
    validation = {0: [0.2, 0.6, 0.4], 1: [0.7, 0.6, 0.7]}
    test = {0: [4, 2, 4], 1: [3, 4, 1]}  # the best on test classes are others
    for cell in cells:
        if cell.option is None:
            finish(cell, test_hits=1, val=0.9)
        else:
            finish(cell, test_hits=test[cell.seed][cell.option], val=validation[cell.seed][cell.option])
    summary = summarise(table, cells, {})
    plain, tuned = summary.rows
    assert tuned.seeds == (0, 1)
    assert tuned.figures["recall_at_1"].values == (0.5, 0.75)
    assert tuned.choices == ("optimizer.lr_encoder=2e-4 model.pooler=mean", "optimizer.lr_encoder=3e-4")
    assert plain.choices == ()
    assert tuned.versus[0].difference == pytest.approx(0.625 - 0.25)
    assert choices(summary) == [
        "tuned, chosen on validation classes: optimizer.lr_encoder=2e-4 model.pooler=mean (seed 0); "
        "optimizer.lr_encoder=3e-4 (seed 1)."
    ]
    assert choices(summary)[0] in markdown(summary)


def test_a_seed_waits_for_all_its_options(table_file: Path) -> None:
    table, cells = planned(table_file)
    for cell in cells:
        if (cell.option, cell.seed) != (1, 1):
            finish(cell, test_hits=2, val=0.5)
    summary = summarise(table, cells, {})
    assert [row.seeds for row in summary.rows] == [(0, 1), (0,)]
    assert list(summary.missing) == ["tuned/option_1/seed_1"]


def test_options_without_validation_classes_are_one_line(table_file: Path) -> None:
    table, cells = planned(table_file)
    for cell in cells:
        finish(cell, test_hits=2, val=None)
    with pytest.raises(DataError, match=r"tuned/option_0/seed_0: has no validation classes.*data\.val_fraction"):
        summarise(table, cells, {})


@pytest.mark.parametrize(
    "options", ['[["run.steps=3"]]', '[["run.steps=3"], ["run.steps=3"]]', '[["run.steps=3"], []]\npretrained = true']
)
def test_options_that_are_no_choice_are_one_line(tmp_path: Path, options: str) -> None:
    path = tmp_path / "table.toml"
    path.write_text(TABLE.partition("options =")[0] + f"options = {options}\n")
    with pytest.raises(ConfigError, match="options: expected two or more different lists"):
        load_table(path)


def test_options_of_one_configuration_are_refused_and_may_be_another_variants(table_file: Path) -> None:
    with pytest.raises(ConfigError, match="tuned/option_0 and tuned/option_1 are the same configuration"):
        planned(table_file, "optimizer.lr_encoder=1e-4", "model.pooler=mean")
    _, cells = planned(table_file, "run.images=640")
    assert cells[0].config == cells[3].config


def test_what_is_left_is_forecast_from_the_finished_cells(table_file: Path) -> None:
    _, cells = planned(table_file)
    assert forecast(cells) == "8 of 8 cells to run; time known after the first"
    finish(cells[0], test_hits=1, val=0.5, wall_s=1000.0)
    assert expected_seconds(cells) == 7 * 1000.0  # nothing better is known of the tuned cells
    finish(cells[1], test_hits=1, val=0.5, wall_s=40.0)
    finish(cells[2], test_hits=1, val=0.5, wall_s=80.0)
    # One cell of the plain variant is left, and four of the tuned one at the median of 40 and 80.
    assert expected_seconds(cells) == pytest.approx(1000 + 4 * 60)
    assert forecast(cells) == "5 of 8 cells to run, about 21 min"
    for cell in cells[3:]:
        finish(cell, test_hits=1, val=0.5)
    assert forecast(cells) == "all 8 cells are finished"


def test_long_forecasts_are_in_hours(table_file: Path) -> None:
    _, cells = planned(table_file)
    finish(replace(cells[0]), test_hits=1, val=0.5, wall_s=1800.0)
    assert forecast(cells) == "7 of 8 cells to run, about 3 h 30 min"


def test_queries_that_no_cell_can_find_are_counted(table_file: Path) -> None:
    table, cells = planned(table_file)
    finish(cells[0], test_hits=1, val=None)
    assert summarise(table, cells, {}).num_unfindable == 0
    finish(cells[4], test_hits=1, val=None, unfindable=2)
    assert summarise(table, cells, {}).num_unfindable == 2


def test_a_warning_of_many_cells_is_said_once_with_the_first(table_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cells = planned(table_file)
    finish(cells[0], test_hits=1, val=None)
    said = {cell.directory: ["no GPU is requested"] for cell in cells}
    said[cells[-1].directory].append("only here")
    monkeypatch.setattr(plan_module, "validate_run", lambda config, directory, option: said[directory])
    assert check(cells) == [f"{cells[1].name}: no GPU is requested", f"{cells[-1].name}: only here"]


def test_a_cell_that_another_process_is_writing_counts_as_failed_and_is_left_alone(
    table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cells = planned(table_file)
    cells[0].directory.mkdir(parents=True)
    owner = Owner("0" * 32, "another boot", "gpu7", 4242, "2026-01-02 03:04:05 UTC", "saga-dist train")
    monkeypatch.setattr(runner, "open_run_directory", lambda *_: pytest.fail("the cell was opened"))
    with (cells[0].directory / OWNER_NAME).open("w+b") as file:
        file.write(owner.content(1))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)  # tells open files apart, so it is held as by another process
        failures = runner.run_sweep(cells[:1], table_file.parent / "out", progress=lambda cell: pytest.fail("it ran"))
    assert list(failures) == [cells[0].name]
    assert "is being written by host gpu7, pid 4242" in failures[cells[0].name]
