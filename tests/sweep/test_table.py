"""Files of tables: what is refused, and what cells they resolve to."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.errors import ConfigError
from saga_dist.sweep.plan import plan
from saga_dist.sweep.runner import worker_settings
from saga_dist.sweep.table import load_table

ROOT = Path(__file__).resolve().parents[2]

TABLE = """
title = "A table"
config = "BASE"
set = ["run.steps=5"]
seeds = [3, 4]
baseline = "plain"
[[variant]]
name = "plain"
label = "metric loss"
set = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
paper = { recall_at_1 = 80, recall_sd = 0.3, nmi = 0.5 }
[[variant]]
name = "wide"
label = "wider"
set = ["model.embedding_dim=96", "objective.lambda_lm=0", "objective.lambda_kl=0"]
[[variant]]
name = "zero"
label = "pre-trained"
pretrained = true
against = ["wide", ""]
"""


def _write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TABLE.replace("BASE", str(ROOT / "configs" / "birds.toml"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "table.toml").write_text(text, "utf-8")
    return folder / "table.toml"


def test_cells_are_the_base_the_table_the_variant_the_seed_and_the_command_line(tmp_path: Path) -> None:
    path = _write(tmp_path)
    table = load_table(path)
    cells = plan(table, path, tmp_path / "out", overrides=["run.steps=7", "optimizer.lr_encoder=1e-3"], seeds=())
    assert [cell.name for cell in cells] == [
        f"{name}/seed_{seed}" for seed in (3, 4) for name in ("plain", "wide", "zero")
    ]
    assert [cell.config.run.seed for cell in cells] == [3, 3, 3, 4, 4, 4]
    assert {cell.config.run.steps for cell in cells} == {7}
    assert {cell.config.optimizer.lr_encoder for cell in cells} == {1e-3}
    assert [cell.config.model.embedding_dim for cell in cells[:3]] == [64, 96, 64]
    assert {cell.config.needs_mllm for cell in cells} == {False}  # without training there is no MLLM to load
    assert [cell.method for cell in cells[:3]] == ["trained", "trained", "pre-trained"]
    assert cells[1].directory == tmp_path / "out" / "wide" / "seed_3"
    assert [table.opponents(variant) for variant in table.variant] == [(), ("plain",), ("wide", "plain")]
    assert table.variant[0].paper is not None and table.variant[0].paper.recall_at_1 == 80
    assert [cell.seed for cell in plan(table, path, tmp_path, overrides=(), seeds=(9,))] == [9, 9, 9]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "plain"', 'baseline = "plan"', "baseline = 'plan'; expected one of plain, wide, zero"),
        ('against = ["wide", ""]', 'against = ["width", ""]', "zero.against = 'width'"),
        ('name = "wide"', 'name = "plain"', "expected each name once"),
        ('name = "wide"', 'name = "../wide"', "variant.1.name"),
        ("seeds = [3, 4]", "seeds = [3, 3]", "expected each seed once"),
        ("seeds = [3, 4]", "seeds = []", "seeds"),
        ("seeds = [3, 4]", "seed = [3]", "seed"),
        ("recall_at_1 = 80", "recall_at_1 = 180", "variant.0.paper.recall_at_1"),
        ("seeds = [3, 4]", "seeds = [3, 4", "not valid TOML"),
        ("seeds = [3, 4]", "seeds = [2026-01-01]", "not valid TOML"),
    ],
)
def test_mistakes_in_a_table_are_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_table(_write(tmp_path, (old, new)))
    assert str(caught.value).startswith(str(tmp_path / "table.toml"))
    assert "\n" not in str(caught.value)


PUBLISHED_ROW = """
[[variant]]
name = "other"
label = "another work"
published = true
[variant.paper]
recall_at_1 = 90.1
source = "Another work"
image_size = 336
"""


def test_a_row_with_published_figures_only_has_no_runs_and_its_own_setting(tmp_path: Path) -> None:
    path = _write(tmp_path)
    path.write_text(path.read_text() + PUBLISHED_ROW + '[published_setting]\nsource = "The paper"\nimage_size = 224\n')
    table = load_table(path)
    cells = plan(table, path, tmp_path / "out", overrides=(), seeds=(0,))
    assert [cell.variant.name for cell in cells] == ["plain", "wide", "zero"]
    plain, wide, zero, other = table.variant
    assert table.trained == (plain, wide, zero)
    assert (table.opponents(other), table.published(wide)) == ((), None)
    own, theirs = table.published(plain), table.published(other)
    assert own is not None and theirs is not None
    assert (own.recall_at_1, own.source, own.image_size, own.pretraining) == (80, "The paper", 224, None)
    assert (theirs.recall_at_1, theirs.source, theirs.image_size) == (90.1, "Another work", 336)
    larger = plain.model_copy(update={"paper": own.model_copy(update={"image_size": 448})})
    said = table.published(larger)
    assert said is not None and (said.source, said.image_size) == ("The paper", 448)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "Another work"\n', "", "published = true without a source"),
        ("published = true", 'published = true\nset = ["run.steps=3"]', "it has no runs"),
        ("published = true", "published = true\npretrained = true", "it has no runs"),
        ("published = true", 'published = true\nagainst = "plain"', "it has no runs"),
    ],
)
def test_mistakes_in_a_published_row_are_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _write(tmp_path)
    assert old in PUBLISHED_ROW
    path.write_text(path.read_text() + PUBLISHED_ROW.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_table(path)
    assert "\n" not in str(caught.value)


def test_a_published_row_is_no_opponent(tmp_path: Path) -> None:
    path = _write(tmp_path, ('against = ["wide", ""]', 'against = "other"'))
    path.write_text(path.read_text() + PUBLISHED_ROW)
    with pytest.raises(ConfigError, match="zero.against = 'other'; expected one of plain, wide, zero"):
        load_table(path)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file"):
        load_table(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_table(tmp_path / "binary.toml")


def test_an_override_that_undoes_the_table_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path)
    table = load_table(path)
    with pytest.raises(ConfigError, match="variants plain and wide are the same configuration"):
        plan(table, path, tmp_path, overrides=["model.embedding_dim=32"], seeds=())
    with pytest.raises(ConfigError, match="use --seed"):
        plan(table, path, tmp_path, overrides=["run.seed=1"], seeds=())
    with pytest.raises(ConfigError, match="unknown key objective.lamda"):
        plan(table, path, tmp_path, overrides=["objective.lamda=1"], seeds=())


def test_workers_are_shared_by_cells_that_differ_in_the_learner_alone(tmp_path: Path) -> None:
    path = _write(tmp_path)
    table = load_table(path)

    def settings(*overrides: str) -> str:
        return worker_settings(plan(table, path, tmp_path, overrides=overrides, seeds=(0,))[1].config)

    plain = settings()
    for same in (
        "optimizer.lr_encoder=1e-3",
        "data.flip=false",
        "run.steps=9",
        "model.pooler=mean",
        "objective.metric_loss=infonce",
        "checkpoint.keep=7",
    ):
        assert settings(same) == plain, same
    for other in (
        "rollout.temperature=1.0",
        "prompt.order=text_first",
        "model.dtype=bfloat16",
        "objective.kl_layer=0",
        "objective.lambda_lm=1",
        "runtime.threads=2",
        "objective.advantage_epsilon=0.1",
    ):
        assert settings(other) != plain, other


def test_a_seed_may_have_overrides_of_its_own_and_variants_win(tmp_path: Path) -> None:
    change = ("seeds = [3, 4]", 'seeds = [3, 4]\nseed_set = { 4 = ["model.path=other", "model.embedding_dim=32"] }')
    path = _write(tmp_path, change)
    cells = plan(load_table(path), path, tmp_path / "out", overrides=(), seeds=())
    assert [cell.config.model.path for cell in cells] == ["standin"] * 3 + ["other"] * 3
    assert [cell.config.model.embedding_dim for cell in cells[3:]] == [32, 96, 32]
    with pytest.raises(ConfigError, match="seed_set.5: expected one of the seeds") as caught:
        load_table(_write(tmp_path, (change[0], change[1].replace("4 =", "5 ="))))
    assert "\n" not in str(caught.value)
