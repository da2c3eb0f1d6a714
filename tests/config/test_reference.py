"""The reference of the configuration: complete, and true to the models; the schema accepts what the parser accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from saga_dist.config import load_config
from saga_dist.config.paper_values import PAPER_VALUES
from saga_dist.config.reference import ADVICE_FILE, ConfigKey, config_keys, config_schema, config_sections, keys_called
from saga_dist.errors import ConfigError
from saga_dist.metrics.registry import metrics_called

ROOT = Path(__file__).resolve().parents[2]
KEYS = {key.key: key for key in config_keys()}


@pytest.mark.parametrize("key", tuple(KEYS.values()), ids=lambda key: key.key)
def test_every_key_says_what_it_is_and_when_to_change_it(key: ConfigKey) -> None:
    assert key.meaning and key.values and key.default
    assert key.change.endswith("."), f"add {key.key} to {ADVICE_FILE}"


def test_no_advice_is_about_a_key_that_does_not_exist() -> None:
    advice = tomllib.loads(ADVICE_FILE.read_text("utf-8"))
    named = {f"{section}.{key}" for section, keys in advice.items() for key in keys if key != "birds"}
    assert named | {f"data.birds.{key}" for key in advice["data"]["birds"]} == set(KEYS)


def test_keys_and_metrics_that_the_advice_names_exist() -> None:
    sections = {section.name for section in config_sections()}
    for key in KEYS.values():
        for word in re.findall(r"\b[a-z]+\.[a-z_]+\b", key.change):
            assert word in KEYS or word.partition(".")[0] not in sections, (key.key, word)
        for word in re.findall(r"\b[a-z_]+/[a-z_0-9]+\b", key.change):
            assert word == "dev/shm" or metrics_called(word), (key.key, word)


@pytest.mark.parametrize(
    ("key", "values", "default", "unit", "paper"),
    [
        ("rollout.top_p", "number > 0, <= 1", "0.95", "probability mass", "0.95"),
        ("rollout.max_micro_batches", "whole number >= 1", "8", "micro-batches", "no limit"),
        ("run.images", "whole number >= 1", "none", "images", ""),
        ("data.root", "text", "empty", "", ""),
        ("model.pooler", "mean, max, attention", '"attention"', "", '"attention"'),
        ("objective.reward", "verdict, or package.module:object", '"verdict"', "", '"verdict"'),
        ("objective.metric_params", "table of names and values", "{}", "", ""),
        ("data.birds.constant_parts", "list of bill, crown, breast, wing, tail, legs", "[]", "", ""),
        ("rollout.record", "true or false", "true", "", ""),
    ],
)
def test_values_default_unit_and_paper(key: str, values: str, default: str, unit: str, paper: str) -> None:
    found = KEYS[key]
    assert (found.values, found.default, found.unit, found.paper) == (values, default, unit, paper)


def test_every_published_value_is_shown() -> None:
    assert {key for key, found in KEYS.items() if found.paper} == set(PAPER_VALUES)


def test_a_key_a_section_or_a_part_is_found() -> None:
    assert [key.key for key in keys_called("rollout.workers")] == ["rollout.workers"]
    assert {key.key for key in keys_called("logging")} == {key for key in KEYS if key.startswith("logging.")}
    assert [key.key for key in keys_called("stalen")] == ["rollout.max_staleness"]
    with pytest.raises(ConfigError, match=r"'objective.lamda_kl'.*did you mean objective.lambda_kl"):
        keys_called("objective.lamda_kl")
    with pytest.raises(ConfigError, match="did you mean rollout.temperature"):
        keys_called("temprature")


VALIDATOR = jsonschema.Draft202012Validator(config_schema())


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.stem)
def test_the_schema_accepts_the_shipped_configurations(file: Path) -> None:
    load_config(file)
    assert list(VALIDATOR.iter_errors(tomllib.loads(file.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollout": {"group_sise": 8}},
        {"rollout": {"group_size": 1}},
        {"rollout": {"group_size": "8"}},
        {"model": {"pooler": "median"}},
        {"checkpoint": {"mirror": "folder"}},
        {"rolout": {}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_parser_refuses(wrong: dict[str, Any]) -> None:
    tree = {"data": {"layout": "birds"}, **wrong}
    assert list(VALIDATOR.iter_errors(tree)) != []
    assert list(VALIDATOR.iter_errors({"data": {"layout": "birds"}})) == []
