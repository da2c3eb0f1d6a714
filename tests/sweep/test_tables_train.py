"""Every row of every shipped table takes two real steps on a tree of its layout, with a tiny model of its family.

By default a covering selection of rows runs, chosen here: every value that a row sets differently from its base, every
layout and every family at least once; and the ablations that are single settings but no rows. The rest is slow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.models.families.base import Family
from saga_dist.retrieval.results import PRETRAINED, TRAINED, Results
from saga_dist.runtime import build
from saga_dist.runtime.run import train
from saga_dist.standin.random_families import write_random_family
from saga_dist.sweep.plan import Cell, plan
from saga_dist.sweep.runner import run_sweep
from saga_dist.sweep.table import load_table
from saga_dist.types import EncoderTokens
from saga_dist.workers.engines.scripted import ScriptedEngine

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "tables").glob("*.toml"))

# Everything that a tiny run changes, besides model.path and data.root. What rows differ in stays as they say it.
TINY: dict[str, Any] = {
    "run.steps": 2,
    "data.batch_size": 4,
    "data.images_per_class": 2,
    "model.dtype": "float32",
    "model.device": "cpu",
    "objective.kl_layer": 1,
    "rollout.group_size": 2,
    "rollout.pairs_per_batch": 2,
    "rollout.max_micro_batches": 1,
    "rollout.max_tokens": 512,
    "runtime.kind": "serial",
    "runtime.threads": 1,
    "checkpoint.every_steps": 2,
    "evaluation.bootstrap_resamples": 100,
    "logging.tensorboard": False,
}
ON_DISK: dict[str, Any] = {"data.image_size": 48}
BIRDS: dict[str, Any] = {
    "data.birds.train_classes": 4,
    "data.birds.train_images_per_class": 3,
    "data.birds.val_images_per_class": 2,
    "data.birds.test_images_per_class": 2,
    "data.birds.probe_images": 0,
    "rollout.max_model_len": 4096,
}
GENERATED = {"rollout.engine": "transformers", "rollout.max_tokens": 8}
SCRIPTED = {"rollout.max_log_prob_gap": 1e9}  # a script is no model: the start-up check would see the difference

SHORT_PROMPT = """
item = "bird"
plural = "birds"
expert = "ornithologist"
identifies = "bird species"
verdict_question = "same species"
verdict_key = "same_species"
attributes = ["bill", "belly"]
"""  # reading the long ones is most of the time; the rows of the tables and the benchmarks' own tests have them

# Ablations of docs/paper.md that are rows of no table.
SINGLE_SETTINGS = {
    "infonce": {"objective.metric_loss": "infonce", "objective.metric_params": {}},
    "mean_pooler": {"model.pooler": "mean", "objective.lambda_kl": 0.0},
    "max_pooler": {"model.pooler": "max", "objective.lambda_kl": 0.0},
    "text_first": {"prompt.order": "text_first"},
    "kl_layer": {"objective.kl_layer": 2},
    "lambdas": {"objective.lambda_dml": 0.5, "objective.lambda_lm": 2.0, "objective.lambda_kl": 0.25},
}


@dataclass(frozen=True)
class SummaryRow:
    """A row of a table that no earlier table has."""

    file: Path
    name: str
    features: frozenset[str]
    """What trains: layout, family, with or without rollouts, and what the row sets differently from its base."""

    def __str__(self) -> str:
        return f"{self.file.stem}-{self.name}"


def _cells(file: Path, overrides: Sequence[str] = (), out: Path = Path("runs") / "none") -> list[Cell]:
    table = load_table(file)
    return list(plan(table, file, out, overrides=overrides, seeds=(0,)))


def _rows() -> list[SummaryRow]:
    rows: dict[tuple[str, bool], SummaryRow] = {}
    for file in FILES:
        table = load_table(file)
        base = load_config(file.parent / table.config, table.set)
        for cell in _cells(file):
            changed = [
                f"{line.partition(':')[0]}={line.rpartition('!= ')[2]}"
                for line in base.differences(cell.config)
                if not line.startswith("run.")
            ]
            trained = [
                base.data.layout,
                *changed,
                f"{base.model.path}, rollouts: {cell.config.objective.needs_rollouts}",
            ]
            features = frozenset(["pretrained"] if cell.variant.pretrained else trained)
            rows.setdefault(
                (cell.config.digest(), cell.variant.pretrained), SummaryRow(file, cell.variant.name, features)
            )
    return list(rows.values())


def _covering(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """Rows that have every feature of all rows, each taken for having the most that is new."""
    missing, chosen = frozenset().union(*(row.features for row in rows)), []
    while missing:
        best = max(rows, key=lambda row: len(row.features & missing))
        chosen.append(best)
        missing -= best.features
    return chosen


ROWS = _rows()
COVERING = _covering(ROWS)
PARAMS = [pytest.param(row, id=str(row), marks=() if row in COVERING else pytest.mark.slow) for row in ROWS]


@pytest.fixture(scope="module")
def overrides(
    tmp_path_factory: pytest.TempPathFactory, layout_makers: dict[str, Callable[[Path], object]]
) -> Callable[[RunConfig], dict[str, Any]]:
    """What makes a configuration tiny: ``overrides(config)``, with a tree of its layout and a model of its family."""
    made: dict[str, Path] = {}

    def folder(name: str, make: Callable[[Path], object]) -> str:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            make(made[name])
        return str(made[name])

    def settings(config: RunConfig) -> dict[str, Any]:
        if config.data.layout == "birds":  # its model is tiny already
            return {**TINY, **BIRDS}
        family = "internvl" if "InternVL" in config.model.path else "qwen3_vl"
        model = folder(family, lambda path: write_random_family(path, family, seed=3))
        data = folder(config.data.layout, layout_makers[config.data.layout])
        return {**TINY, **ON_DISK, "model.path": model, "data.root": data}

    return settings


@pytest.fixture
def short(tmp_path: Path) -> dict[str, str]:
    """A prompt of few words."""
    path = tmp_path / "words.toml"
    path.write_text(SHORT_PROMPT)
    return {"prompt.vocabulary": str(path)}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One right and one wrong answer a pair, in the words of the prompt: random weights never answer."""

    def engine(config: RunConfig, family: Family) -> ScriptedEngine:
        prompt, tokenizer = build.build_prompt(config), family.load_tokenizer()
        attribute = prompt.vocabulary.attribute_keys[0]
        values: dict[str, Any] = {
            prompt.key_a: {attribute: "red"},
            prompt.key_b: {attribute: "blue"},
            "differences": attribute,
            "confidence": "high",
            "reasoning": "So.",
        }

        def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
            verdict = {prompt.verdict_key: "yes" if completion == 0 else "no"}
            return json.dumps({key: {**values, **verdict}[key] for key in prompt.keys})

        return ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id)

    monkeypatch.setattr(build, "build_engine", engine)


def _as_arguments(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@contextmanager
def _silent(cell: Cell):  # type: ignore[no-untyped-def]
    yield lambda result: None


def _run_row(row: SummaryRow, settings: dict[str, Any], out: Path) -> Cell:
    (cell,) = [cell for cell in _cells(row.file, _as_arguments(settings), out) if cell.variant.name == row.name]
    assert run_sweep([cell], out, progress=_silent) == {}
    return cell


def _check(config: RunConfig, run_dir: Path, *, answered: bool) -> None:
    """The run has two steps, and in each of them every loss that is on, and no other, has a gradient."""
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "loss/dml" in step] == [1, 2]
    for step in (step for step in steps if "loss/dml" in step):
        assert math.isfinite(step["loss/dml"])
        assert step["gradient/total_norm"] > 0
        assert step.get("rollout/groups", 0) == (2 if config.objective.needs_rollouts else 0)
        if config.objective.needs_rollouts:
            assert step["rollout/contributing_share"] == float(answered)
            assert (step["gradient/grpo_at_tokens_norm"] > 0) == (answered and config.objective.lambda_lm > 0)
            assert (step.get("loss/kl", 0) > 0) == (answered and config.objective.lambda_kl > 0)
    results = Results.load(run_dir / "results.json")
    assert results.backbone_unchanged is True
    assert [method.name for method in results.methods] == [PRETRAINED, TRAINED]
    assert results.method(TRAINED).optimizer_steps == 2
    pooler = json.loads((run_dir / "model" / "config.json").read_text())["pooler"]
    assert (pooler["kind"], pooler["embedding_dim"]) == (config.model.pooler, config.model.embedding_dim)


def test_the_selection_covers_the_tables() -> None:
    everything = frozenset().union(*(row.features for row in ROWS))
    assert frozenset().union(*(row.features for row in COVERING)) == everything
    assert {
        "objective.metric_loss='proxy_anchor'",
        "objective.metric_loss='multi_similarity'",
        "objective.lambda_lm=0.0",
        "objective.lambda_kl=0.0",
        "prompt.variant='generic'",
        "model.embedding_dim=512",
        "model.embedding_dim=128",
        "OpenGVLab/InternVL3_5-8B-HF, rollouts: True",
        "pretrained",
        *("cub", "cars", "aircraft", "inat", "birds"),
    } <= everything


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize("row", PARAMS)
def test_every_row_trains_two_steps(
    row: SummaryRow, overrides: Callable[[RunConfig], dict[str, Any]], tmp_path: Path
) -> None:
    settings = {**overrides(_cells(row.file)[0].config), **SCRIPTED}
    cell = _run_row(row, settings, tmp_path)
    if cell.variant.pretrained:
        results = cell.results()
        assert [method.name for method in results.methods] == [PRETRAINED]
        assert not (cell.directory / "metrics.jsonl").exists()
    else:
        _check(cell.config, cell.directory, answered=True)


@pytest.mark.parametrize("table", ["table2_cub", "internvl_cub"])
def test_rows_train_on_what_their_own_model_generates(
    table: str, overrides: Callable[[RunConfig], dict[str, Any]], short: dict[str, str], tmp_path: Path
) -> None:
    (file,) = [file for file in FILES if file.stem == table]
    settings, out = {**overrides(_cells(file)[0].config), **GENERATED, **short}, tmp_path / "out"
    cells = [cell for cell in _cells(file, _as_arguments(settings), out) if cell.config.objective.needs_rollouts]
    assert run_sweep(cells, out, progress=_silent) == {}
    for cell in cells:
        _check(cell.config, cell.directory, answered=False)


@pytest.mark.usefixtures("_scripted")
@pytest.mark.parametrize("name", SINGLE_SETTINGS)
def test_ablations_that_are_no_rows_train_two_steps(
    name: str, overrides: Callable[[RunConfig], dict[str, Any]], short: dict[str, str], tmp_path: Path
) -> None:
    settings = {**overrides(load_config("configs/cub.toml")), **SCRIPTED, **short, "model.embedding_dim": 16}
    config = load_config("configs/cub.toml", _as_arguments({**settings, **SINGLE_SETTINGS[name]}))
    train(config, tmp_path / "run")
    _check(config, tmp_path / "run", answered=True)
