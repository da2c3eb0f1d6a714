"""Configurations are found by path or by the name of a shipped one, from every working directory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saga_dist.config import load_config
from saga_dist.config.find import TABLES, find_config, shipped_names
from saga_dist.data.vocabularies import load_vocabulary
from saga_dist.errors import ConfigError
from saga_dist.sweep.plan import plan
from saga_dist.sweep.table import load_table
from saga_dist.utils.shipped import find_shipped, shipped_page

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
CONFIG = '[run]\nsteps = {}\n[data]\nlayout = "birds"\nimage_size = 80\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "folders", "expected"),
    [
        ("birds", (), "birds.toml"),
        ("birds.toml", (), "birds.toml"),
        ("configs/birds.toml", (), "birds.toml"),
        ("configs/birds", (), "birds.toml"),
        ("evidence/h", (), "evidence/h.toml"),
        ("h", ("", "evidence"), "evidence/h.toml"),
        ("birds", TABLES, "tables/birds.toml"),
        ("tables/birds", TABLES, "tables/birds.toml"),
        ("table_h", TABLES, "evidence/table_h.toml"),
        ("configs/vocabularies/clothes.toml", (), "vocabularies/clothes.toml"),
    ],
)
def test_a_name_or_a_path_of_the_repository_is_the_shipped_file(
    given: str, folders: tuple[str, ...], expected: str
) -> None:
    assert find_config(given, folders=folders).read_text() == (CONFIGS / expected).read_text()


def test_a_local_file_wins_and_a_local_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "cub").mkdir()
    assert find_config("cub").read_text() == (CONFIGS / "cub.toml").read_text()
    (tmp_path / "cub.toml").write_text(CONFIG.format(7))
    assert load_config("cub").run.steps == load_config("cub.toml").run.steps == 7
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "birds.toml").write_text(CONFIG.format(8))
    assert load_config("configs/birds.toml").run.steps == 8


@pytest.mark.parametrize("given", ["bird", "configs/bird.toml", "../configs/birds.toml", "/nowhere/birds.toml"])
def test_nothing_else_is_taken_for_a_shipped_file(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_config(given)
    assert str(caught.value).startswith(f"{given}: cannot read the file")
    names = "the name of a shipped one: aircraft, birds, cars, cub, folder"
    assert (names in str(caught.value)) is not given.startswith("/")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean birds?"):
        find_config("brids")
    with pytest.raises(ConfigError, match="did you mean tables/table2_cub?"):
        find_config("table2_cubs", folders=TABLES)


def test_listed_names_are_found_and_are_of_the_kind_that_is_asked_for() -> None:
    runs, tables = shipped_names(), shipped_names(TABLES)
    assert {"birds", "folder", "evidence/h"} <= set(runs)
    assert {"tables/birds", "evidence/table_h"} <= set(tables)
    for name in runs:
        assert load_config(find_config(name)).run.steps > 0
    for name in tables:
        assert load_table(Path(name)).variant


def test_a_table_finds_its_base_configuration(tmp_path: Path) -> None:
    table = Path("tables/birds")
    cells = plan(load_table(table), table, tmp_path / "out", overrides=(), seeds=())
    assert cells[0].config.data.layout == "birds"


def test_a_shipped_vocabulary_is_found() -> None:
    assert load_vocabulary("configs/vocabularies/clothes.toml").verdict_key == "same_item"


def test_a_page_is_named_by_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(shipped_page("docs/evidence.md")).read_text().startswith("#")
    monkeypatch.chdir(ROOT)
    assert shipped_page("docs/evidence.md") == "docs/evidence.md"
    assert shipped_page("docs/none.md") == "docs/none.md"


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md", "docs/evidence.md", "docs/paper.md"])
def test_every_configuration_that_a_page_names_is_found_from_an_empty_directory(page: str) -> None:
    named = re.findall(r"configs/[\w/]+\.(?:toml|json)", (ROOT / page).read_text())
    assert named
    for name in named:
        assert find_shipped(Path(name)).is_file(), name


def test_a_local_file_wins_over_a_shipped_one_of_its_path(tmp_path: Path) -> None:
    path = Path("configs/evidence/results.json")
    assert find_shipped(path).read_text() == (ROOT / path).read_text()
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("{}")
    assert find_shipped(path) == path
    assert find_shipped(Path("../README.md")) == Path("../README.md")
