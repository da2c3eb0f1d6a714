"""Parameters of the metric losses, which the configuration checks and the losses take."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from saga_dist.config import parse_config
from saga_dist.config.metric_params import METRIC_PARAMS, complete_metric_params
from saga_dist.config.registries import METRIC_LOSSES
from saga_dist.errors import ConfigError
from saga_dist.objectives.metric_losses import build_metric_loss
from saga_dist.objectives.potential_field import PotentialFieldLoss


def parse(**objective: Any) -> Any:
    return parse_config({"data": {"layout": "birds", "image_size": 80}, "objective": objective}, where="run.toml")


def test_every_built_in_loss_has_its_parameters() -> None:
    assert METRIC_PARAMS.keys() == METRIC_LOSSES.builtin.keys()


def test_defaults_are_those_of_the_losses() -> None:
    signature = inspect.signature(PotentialFieldLoss.__init__).parameters
    for name, parameter in METRIC_PARAMS["potential_field"].items():
        assert signature[name].default == parameter.default
    loss = build_metric_loss("potential_field", num_classes=2, embedding_dim=3, seed=0, proxies_per_class=4).loss
    assert isinstance(loss, PotentialFieldLoss)
    assert (loss.delta, loss.alpha, loss.reduction, tuple(loss.proxies_CME.shape)) == (0.2, 3.0, "per_pair", (2, 4, 3))
    anchor = build_metric_loss("proxy_anchor", num_classes=2, embedding_dim=3, seed=0, margin=0.3).loss
    assert (anchor.margin, anchor.alpha) == (0.3, 32.0)
    mined = build_metric_loss("multi_similarity", num_classes=2, embedding_dim=3, seed=0, beta=40).loss
    assert (mined.loss.alpha, mined.loss.beta, mined.loss.base, mined.miner.epsilon) == (2.0, 40.0, 0.5, 0.1)
    assert build_metric_loss("infonce", num_classes=2, embedding_dim=3, seed=0).loss.temperature == 0.07
    supcon = build_metric_loss("infonce", num_classes=2, embedding_dim=3, seed=0, variant="supcon", temperature=2).loss
    assert (type(supcon).__name__, supcon.temperature) == ("SupConLoss", 2.0)


@pytest.mark.parametrize("loss", METRIC_PARAMS)
def test_a_mistake_is_found_when_the_configuration_is_read(loss: str) -> None:
    with pytest.raises(ConfigError, match=f"run.toml: objective.metric_params.gamma: {loss} has no parameter 'gamma'"):
        parse(metric_loss=loss, metric_params={"gamma": 1.0})
    for name in METRIC_PARAMS[loss]:
        with pytest.raises(ConfigError, match=f"objective.metric_params.{name}: False; expected"):
            parse(metric_loss=loss, metric_params={name: False})


def test_parameters_of_ones_own_loss_are_not_known_here() -> None:
    assert parse(metric_loss="mine:Loss", metric_params={"gamma": 1.0}).objective.metric_params == {"gamma": 1.0}


@pytest.mark.parametrize(
    ("name", "valid", "wrong"),
    [
        ("proxies_per_class", [1, 15], [0, -1, 2.0, "3", True]),
        ("delta", [0.2, 1], [0, -0.1, float("inf"), float("nan"), "0.2", True]),
        ("alpha", [0, 3.5], [-1, float("inf"), None]),
        ("reduction", ["mean", "sum"], ["", "median", 3]),
    ],
)
def test_values_are_checked_by_type_and_range(name: str, valid: list[Any], wrong: list[Any]) -> None:
    for value in valid:
        assert complete_metric_params("potential_field", {name: value})[name] == value
    for value in wrong:
        with pytest.raises(ConfigError, match=f"metric_params.{name}: "):
            complete_metric_params("potential_field", {name: value})
