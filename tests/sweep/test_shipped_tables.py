"""The shipped tables: the paper's figures, and every cell resolves on a tree of its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import RunConfig, load_config
from saga_dist.sweep.plan import plan
from saga_dist.sweep.table import Table, load_table

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "tables").glob("*.toml"))

SMALL_DATA_NO_GPU = (
    "data.batch_size=4",
    "data.images_per_class=2",
    "rollout.pairs_per_batch=2",
    "rollout.num_gpus=0",
    "runtime.learner_num_gpus=0",
)
"""Overrides with which a shipped configuration is valid on a small tree and a machine without GPUs."""

# Recall@1 as the paper prints it, in the order of the rows.
PUBLISHED = {
    "table1_cub": (75.6, 79.5, 81.6, 87.9),
    "table1_cars": (70.7, 93.4, 93.7, 97.0),
    "table1_aircraft": (53.1, 73.1, 77.4, 83.5),
    "table1_inat_aves": (42.2, 54.1, 55.6, 60.1),
    "table2_cub": (81.6, 84.1, 87.0, 82.1, 87.9),
    "table2_aircraft": (77.4, 79.6, 82.3, 78.1, 83.5),
    "metric_losses_cub": (77.8, 86.1, 79.5, 87.3, 81.6, 87.9),
    "metric_losses_aircraft": (72.5, 82.3, 73.1, 82.7, 77.4, 83.5),
    "embedding_dim_cub": (81.6, 87.9, 79.4, 86.5, 78.3, 83.8),
    "embedding_dim_aircraft": (77.4, 83.5, 76.3, 80.1, 75.5, 79.5),
    "internvl_cub": (50.8, 78.0, 80.1),
}
NMI = {
    "table1_cub": (0.77, 0.79, 0.81, 0.83),
    "table1_cars": (0.49, 0.84, 0.86, 0.89),
    "table1_aircraft": (0.43, 0.68, 0.72, 0.77),
    "table1_inat_aves": (0.65, 0.72, 0.73, 0.80),
}


@pytest.fixture(scope="module")
def tree(
    tmp_path_factory: pytest.TempPathFactory, layout_makers: dict[str, Callable[[Path], object]]
) -> Callable[[str], Path]:
    """Makes a small tree in a layout, once."""
    made: dict[str, Path] = {}

    def make(layout: str) -> Path:
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp(layout)
            layout_makers[layout](made[layout])
        return made[layout]

    return make


def _cells(name: str) -> tuple[Table, dict[str, RunConfig]]:
    path = ROOT / "configs" / "tables" / f"{name}.toml"
    table = load_table(path)
    cells = plan(table, path, Path("runs") / "none", overrides=(), seeds=(0,))
    return table, {cell.variant.name: cell.config for cell in cells}


def _losses(config: RunConfig) -> tuple[str, float, float]:
    return config.objective.metric_loss, config.objective.lambda_lm, config.objective.lambda_kl


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_carry_the_published_figures(name: str) -> None:
    table, configs = _cells(name)
    unpublished = [variant.name for variant in table.variant if variant.paper is None]
    assert all("attention" in row or row == "saga_mean" for row in unpublished)
    papers = [table.published(variant) for variant in table.trained if variant.paper is not None]
    assert tuple(paper.recall_at_1 for paper in papers if paper) == PUBLISHED[name]
    mllm = "InternVL3.5-8B" if name.startswith("internvl") else "Qwen3-VL-8B"
    for paper in papers:
        assert paper is not None and paper.source is not None
        assert paper.source.startswith("SAGA, arXiv 2606.15134")
        assert (paper.image_size, paper.pretraining) == (224, mllm)
    if name in NMI:
        assert tuple(paper.nmi for paper in papers if paper) == NMI[name]
    assert table.seeds == (0, 1, 2)
    base = ROOT / "configs" / f"{name.split('_', 1)[1] if name.startswith('table') else name.rpartition('_')[2]}.toml"
    assert (ROOT / "configs" / "tables" / table.config).resolve() == base
    # The full method, where it is a row, is the shipped configuration and nothing else.
    full = next(configs[row] for row in ("saga", "potential_field_saga", "saga_4096") if row in configs)
    changed = full.differences(load_config(base))
    assert [line.partition(":")[0] for line in changed] == (["model.path"] if name.startswith("internvl") else [])


def test_the_metric_losses_alone_are_mean_pooled_where_a_figure_is_published_and_attention_pooled_beside() -> None:
    """Baselines of the paper have mean pooling; what the attention pooler brings them is published nowhere."""
    for name in PUBLISHED:
        table, configs = _cells(name)
        for variant in table.trained:
            config = configs[variant.name]
            if variant.pretrained or config.objective.needs_rollouts:
                continue
            pooler = "mean" if variant.paper is not None else "attention"
            assert config.model.pooler == pooler, (name, variant.name)
            assert ("attention pooler" in variant.label) == (pooler == "attention")
            if pooler == "attention":
                (opponent,) = table.opponents(variant)
                changed = [line.partition(":")[0] for line in config.differences(configs[opponent])]
                assert changed == ["model.pooler"], (name, variant.name)
        attention = {row for row in configs if "attention" in row}
        assert attention, name
        # Each row of the method is compared with its metric loss, with and without the pooler.
        for variant in table.trained:
            if "saga" in variant.name and variant.name != "saga_mean":
                opponents = table.opponents(variant)
                assert len(opponents) == 2 and len(attention & set(opponents)) == 1


STRONGER = {"table1_cub": (89.2, 90.1, 89.1, 88.5, 87.8), "table1_cars": (98.2, 97.4, 97.3, 91.5)}


@pytest.mark.parametrize("name", STRONGER)
def test_strong_encoders_that_the_paper_leaves_out_stand_beside_it(name: str) -> None:
    table, configs = _cells(name)
    rows = [variant for variant in table.variant if variant.published]
    assert tuple(row.paper.recall_at_1 for row in rows if row.paper) == STRONGER[name]
    for row in rows:
        assert row.name not in configs
        assert row.paper is not None and row.paper.source is not None and "arXiv" in row.paper.source
        assert "SAGA" not in row.paper.source
    assert [row.paper.image_size for row in rows if row.paper and row.name.startswith("unicom")] == [336, 336]


def test_no_table_is_without_its_figures_but_the_birds() -> None:
    assert {file.stem for file in FILES} == PUBLISHED.keys() | {"birds"}


@pytest.mark.parametrize("name", ["table2_cub", "table2_aircraft"])
def test_ablation_rows_switch_what_they_say(name: str) -> None:
    _, configs = _cells(name)
    assert {row: (*_losses(config)[1:], config.prompt.variant) for row, config in configs.items()} == {
        "potential_field": (0, 0, "structured"),
        "potential_field_attention": (0, 0, "structured"),
        "grpo_generic": (1, 0, "generic"),
        "grpo": (1, 0, "structured"),
        "kl": (0, 1, "structured"),
        "saga": (1, 1, "structured"),
    }


@pytest.mark.parametrize("data", ["cub", "aircraft"])
def test_rows_of_other_losses_and_widths(data: str) -> None:
    table, configs = _cells(f"metric_losses_{data}")
    for loss in ("multi_similarity", "proxy_anchor", "potential_field"):
        assert _losses(configs[loss]) == (loss, 0, 0)
        assert _losses(configs[f"{loss}_saga"]) == (loss, 1, 1)
        assert configs[loss].objective.metric_params == configs[f"{loss}_saga"].objective.metric_params
        (saga,) = [variant for variant in table.variant if variant.name == f"{loss}_saga"]
        assert table.opponents(saga) == (loss, f"{loss}_attention")
    table, configs = _cells(f"embedding_dim_{data}")
    for width in (4096, 512, 128):
        assert configs[f"potential_field_{width}"].model.embedding_dim == width
        assert configs[f"saga_{width}"].model.embedding_dim == width
        assert _losses(configs[f"saga_{width}"])[1:] == (1, 1)
        assert _losses(configs[f"potential_field_{width}"])[1:] == (0, 0)
        (saga,) = [variant for variant in table.variant if variant.name == f"saga_{width}"]
        assert table.opponents(saga) == (f"potential_field_{width}", f"potential_field_attention_{width}")


@pytest.mark.parametrize("name", ["table1_cub", "table1_cars", "table1_aircraft", "table1_inat_aves"])
def test_main_results_compare_the_tower_two_metric_losses_and_the_method(name: str) -> None:
    table, configs = _cells(name)
    assert [variant.pretrained for variant in table.trained] == [True, False, False, False, False, False]
    assert {row: (*_losses(config), config.model.pooler) for row, config in configs.items() if row != "pretrained"} == {
        "proxy_anchor": ("proxy_anchor", 0, 0, "mean"),
        "potential_field": ("potential_field", 0, 0, "mean"),
        "potential_field_attention": ("potential_field", 0, 0, "attention"),
        "saga": ("potential_field", 1, 1, "attention"),
        "saga_mean": ("potential_field", 1, 0, "mean"),  # the mean pooler has no weights to align
    }


@pytest.mark.integration
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_dry_runs(
    file: Path, tree: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    table = load_table(file)
    layout = load_config(file.parent / table.config).data.layout
    overrides = [] if layout == "birds" else [f"data.root={tree(layout)}", *SMALL_DATA_NO_GPU]
    arguments = ["sweep", str(file), *overrides, "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for variant in table.trained:
        for seed in table.seeds:
            (line,) = [line for line in result.output.splitlines() if line.startswith(f"{variant.name}/seed_{seed} ")]
            assert "not started" in line
            assert ("evaluation only" in line) == variant.pretrained
    assert not (tmp_path / "out").exists()  # nothing was trained, nothing is left
