"""Parameters of the built-in metric losses (``objective.metric_params``): their defaults and their valid values.

They stand apart from the losses, so that a configuration is checked without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from saga_dist.errors import ConfigError

Reduction = Literal["per_pair", "per_active_pair", "mean", "sum"]
"""The reduction turns the energy U of the Potential Field into the loss. SAGA does not publish which one it uses.

- ``per_pair``: U / (S (S - 1)), the mean over ordered pairs of the S items;
- ``per_active_pair``: the mean over the ordered pairs that exert a force; 0 when there is none;
- ``mean``: U / I, the mean over the batch's images;
- ``sum``: U.

The gradients of ``mean`` and ``sum`` grow with the number of items and with delta^-alpha. In SAGA's sum of losses with
equal weights they are hundreds of times those of GRPO, and the joint clipping removes GRPO's.
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a metric loss."""

    default: float | int | str | None
    """Value when the configuration does not set it; None: the loss derives it from its other parameters."""
    read: Callable[[object], float | int | str | None]
    """Returns the value in the type that the loss takes; None when it is not valid."""
    expected: str
    """The valid values, as text."""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def _positive(default: float | None) -> Parameter:
    def read(value: object) -> float | None:
        number = _number(value)
        return number if number is not None and number > 0 else None

    return Parameter(default, read, "a positive number")


def _not_negative(default: float) -> Parameter:
    def read(value: object) -> float | None:
        number = _number(value)
        return number if number is not None and number >= 0 else None

    return Parameter(default, read, "a number >= 0")


def _whole(default: int) -> Parameter:
    def read(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    return Parameter(default, read, "a whole number above 0")


def _choice(default: str, choices: tuple[str, ...]) -> Parameter:
    def read(value: object) -> str | None:
        return value if isinstance(value, str) and value in choices else None

    return Parameter(default, read, f"one of {', '.join(choices)}")


METRIC_PARAMS: Mapping[str, Mapping[str, Parameter]] = MappingProxyType(
    {
        "potential_field": {
            "proxies_per_class": _whole(15),
            "delta": _positive(0.2),
            "alpha": _not_negative(3.0),
            "reduction": _choice("per_pair", get_args(Reduction)),
        },
        "proxy_anchor": {"margin": _not_negative(0.1), "alpha": _positive(32.0)},
        "multi_similarity": {
            "alpha": _positive(2.0),
            "beta": _positive(50.0),
            "base": _not_negative(0.5),
            "miner": _not_negative(0.1),
        },
        "infonce": {"variant": _choice("ntxent", ("ntxent", "supcon")), "temperature": _positive(None)},
    }
)
"""Parameters of every built-in metric loss, by its name and theirs."""


def complete_metric_params(loss: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Returns the value of every parameter of a built-in metric loss: the given one or the default.

    Args:
        loss: name of the loss, a key of ``METRIC_PARAMS``.
        given: ``objective.metric_params``.

    Raises:
        ConfigError: the loss has no such parameter, or a value is not valid.
    """
    known = METRIC_PARAMS[loss]
    values: dict[str, Any] = {name: parameter.default for name, parameter in known.items()}
    for name, value in given.items():
        where = f"objective.metric_params.{name}"
        if name not in known:
            raise ConfigError(
                f"{loss} has no parameter {name!r}",
                where=where,
                expected=f"one of {', '.join(known)}",
                fix="leave it out, or set objective.metric_loss",
            )
        values[name] = known[name].read(value)
        if values[name] is None:
            raise ConfigError(f"{value!r}", where=where, expected=known[name].expected)
    return values
