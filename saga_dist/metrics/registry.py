"""The registry of metrics: every name that a row of metrics.jsonl may have, what it measures, and what to do about it.

``registry.toml`` holds the entries. A name may be a family: ``{a,b}`` stands for each of its alternatives and ``{N}``
for a whole number, so ``importance/weight_p{N}`` covers ``importance/weight_p50``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import product
from pathlib import Path

from saga_dist.config.reference import config_keys
from saga_dist.config.section import Section
from saga_dist.errors import ConfigError

FILE = Path(__file__).with_name("registry.toml")
NUMBER = "{N}"
"""Part of a family's name that stands for a whole number."""
_ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")


class Metric(Section):
    """One metric, or one family of metrics that mean the same for different parts."""

    name: str
    """Name in metrics.jsonl, ``stage/quantity_unit``, with the placeholders of a family."""
    title: str
    """Words for a chart: a heading, and after ``": "`` the label of one line of it; placeholders as in the name."""
    unit: str
    """Unit, and range where it has one."""
    measures: str
    """Meaning of the number."""
    healthy: str
    """Values of a run that is well."""
    otherwise: str
    """Cause and remedy of other values."""
    only: str = ""
    """Runs or steps that have the metric; empty: all of them."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the family with every alternative written out; ``{N}`` stays."""
        return _written_out(self.name)

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """Title of each of ``names``; ``{N}`` stays."""
        return _written_out(self.title)

    @property
    def axis_unit(self) -> str:
        """Unit without its range, for the axis of a chart."""
        return re.split(r"[,;]| in [\[(]", self.unit)[0]

    @property
    def is_share(self) -> bool:
        """True for shares and probabilities, which a chart shows in percent."""
        return self.axis_unit in ("share", "probability")

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(re.escape(name).replace(re.escape(NUMBER), r"(\d+)")) for name in self.names)

    def covers(self, name: str) -> bool:
        """Returns True when a name of metrics.jsonl is this metric, or one of this family."""
        return any(pattern.fullmatch(name) for pattern in self._patterns)

    def position_of(self, name: str) -> tuple[int, int]:
        """Returns the place of a name within this family: number of its alternative, and the number in it, or 0.

        Raises:
            ValueError: the name is of another metric.
        """
        for alternative, pattern in enumerate(self._patterns):
            if found := pattern.fullmatch(name):
                return alternative, int(found[1]) if found.groups() else 0
        raise ValueError(f"{self.name} does not cover {name}")

    def title_of(self, name: str) -> tuple[str, str]:
        """Returns heading and label of a name of this family; the label is empty where the heading has one line.

        Raises:
            ValueError: the name is of another metric.
        """
        alternative, value = self.position_of(name)
        heading, _, label = self.titles[alternative].replace(NUMBER, str(value)).partition(": ")
        return heading, label


class MetricGroup(Section):
    """Metrics of one subject, in the order in which they are read."""

    title: str
    """Heading."""
    about: str
    """Statement that holds for all of them."""
    metric: list[Metric]
    """The metrics."""


class _File(Section):
    group: list[MetricGroup]


@cache
def metric_groups() -> tuple[MetricGroup, ...]:
    """Returns all groups, in the order of the file."""
    return tuple(_File.model_validate(tomllib.loads(FILE.read_text("utf-8"))).group)


def all_metrics() -> Iterator[Metric]:
    """Yields all metrics, in the order of the file."""
    for group in metric_groups():
        yield from group.metric


def find_metric(name: str) -> Metric | None:
    """Returns the entry of a name in metrics.jsonl, or None when it has none.

    Args:
        name: a name as in metrics.jsonl, or the name of a family as in the registry.
    """
    return next((metric for metric in all_metrics() if metric.name == name or metric.covers(name)), None)


def metrics_called(name: str) -> list[Metric]:
    """Returns the metrics that a user means: the one of that name, or those whose names contain it.

    Args:
        name: a name, or a part of one: ``rollout/``, ``share``.

    Raises:
        ConfigError: there is none; the message names close ones.
    """
    exact = find_metric(name)
    if exact is not None:
        return [exact]
    found = [metric for metric in all_metrics() if any(name in one for one in metric.names)]
    if found:
        return found
    raise ConfigError(
        f"no metric is called {name!r}",
        where="metrics",
        expected="a name of metrics.jsonl, or a part of one",
        fix=_advice(name),
    )


def _written_out(template: str) -> tuple[str, ...]:
    """Returns the template once for each choice of its alternatives, in their order."""
    parts = _ALTERNATIVES.split(template)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return tuple("".join(one) for one in product(*choices))


def _advice(name: str) -> str:
    """Returns what to type in place of a name that no metric has."""
    if any(key.key == name for key in config_keys()):
        return f"this is a configuration key: `saga-dist config {name}`"
    known = [one for metric in all_metrics() for one in metric.names]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else "see `saga-dist metrics`"
