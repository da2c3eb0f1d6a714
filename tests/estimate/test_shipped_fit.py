"""Every shipped configuration of a released model fits the card that its header names, in its largest step.

The largest step has ``rollout.max_micro_batches`` micro-batches and completions of ``rollout.max_tokens``; rollout
worker, replay and learner share the card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import STANDINS, RunConfig, load_config
from saga_dist.estimate import memory, planner
from saga_dist.estimate.capacity import MachineLimits, capacity_warnings
from saga_dist.estimate.data import DataShape
from saga_dist.estimate.rates import CARDS, Card
from saga_dist.sweep.plan import plan
from saga_dist.sweep.table import load_table

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PLENTY = MachineLimits(gpus=64, host=1 << 50, shm=1 << 50, disk=1 << 50)
OF_ONE_SIZE = {"24": "4090", "48": "l40s", "80": "a100", "141": "h200"}
"""Cards by the size that headers name, GB."""


def is_large(path: Path) -> bool:
    return load_config(path).model.path not in STANDINS


SINGLE = [path.stem for path in sorted(CONFIGS.glob("*.toml")) if is_large(path)]
TABLES = [
    path.stem for path in sorted((CONFIGS / "tables").glob("*.toml")) if is_large(path.parent / load_table(path).config)
]


def named_card(path: Path) -> Card:
    header = path.read_text("utf-8").partition("\n\n")[0]
    found = re.search(r"one\s(?:# )?GPU .{0,5}about (\d+) GB", header)
    assert found is not None, f"the header of {path.name} names no card"
    return CARDS[OF_ONE_SIZE[found[1]]]


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """Counts the activations of each model and prompt once, and sizes one's own images at 1,000 training classes."""
    replay, tower = memory.replay_activations, memory.tower_activations
    counted: dict[Any, Any] = {}

    def replay_once(shape: Any, *, prefix: int, lengths: list[int]) -> Any:
        key = (shape.name, prefix, *lengths)
        return (
            counted[key] if key in counted else counted.setdefault(key, replay(shape, prefix=prefix, lengths=lengths))
        )

    def tower_once(shape: Any, *, autocast: bool) -> Any:
        key = (shape.name, shape.settings.train, autocast)
        return counted[key] if key in counted else counted.setdefault(key, tower(shape, autocast=autocast))

    data_shape = planner.data_shape

    def data_of(config: RunConfig) -> DataShape:
        return DataShape(1000, 50_000, "made up") if config.data.layout == "folder" else data_shape(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "replay_activations", replay_once)
        patch.setattr(memory, "tower_activations", tower_once)
        patch.setattr(planner, "data_shape", data_of)
        yield


def complaints(config: RunConfig, card: Card) -> list[str]:
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        found = planner.memory_plan(plan_inputs)
    samples = config.objective.needs_rollouts
    assert max(found.devices) == (config.rollout.max_micro_batches if samples else 1)
    return list(capacity_warnings(found, PLENTY))


@pytest.mark.integration
@pytest.mark.parametrize("name", SINGLE)
def test_a_configuration_fits_the_card_of_its_header(name: str) -> None:
    path = CONFIGS / f"{name}.toml"
    assert complaints(load_config(path), named_card(path)) == []


# The other data sets' tables have the same rows, and differ in the number of classes.
@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [name if name.endswith("_cub") else pytest.param(name, marks=pytest.mark.slow) for name in TABLES]
)
def test_every_row_of_a_table_fits_the_card_of_its_configuration(name: str) -> None:
    path = CONFIGS / "tables" / f"{name}.toml"
    table = load_table(path)
    card = named_card((path.parent / table.config).resolve())
    for cell in plan(table, path, Path("runs") / "none", overrides=(), seeds=(0,)):
        assert complaints(cell.config, card) == [], cell.variant.name


@pytest.mark.integration
def test_without_checkpointing_the_largest_step_does_not_fit() -> None:
    path = CONFIGS / "folder.toml"
    (line,) = complaints(load_config(path, ["optimizer.gradient_checkpointing=false"]), named_card(path))
    assert "in a step of 8 micro-batches" in line
    assert "optimizer.gradient_checkpointing=true would fit" in line


@pytest.mark.integration
def test_a_share_that_has_no_room_for_the_engine_has_its_line() -> None:
    path = CONFIGS / "cub.toml"
    (line,) = complaints(load_config(path, ["rollout.gpu_memory_utilization=0.12"]), named_card(path))
    assert "rollout.gpu_memory_utilization = 0.12 of a GPU of 150.0 GB leaves" in line
    assert "raise it, use a larger GPU" in line
