"""The pages *Configuration* and *Metrics*, and links to their entries from every other page."""

from __future__ import annotations

import re
from functools import cache

from sections import outside_fences

from saga_dist.config.reference import ConfigKey, config_keys, config_sections
from saga_dist.metrics.registry import Metric, all_metrics, metric_groups

_CODE = re.compile(r"(?<![\[`])`([a-z_]+[./][^`\s]+)`(?![\]`])")
_WORD = re.compile(r"(?<![\w`/.-])([a-z_]+(?:/|\.)[a-z_0-9.]+)\b(?!`)")


@cache
def _targets() -> dict[str, str]:
    """Returns the link of every configuration key, and of every metric with the names of its family."""
    keys = {key.key: f"configuration.md#{_anchor(key.key)}" for key in config_keys()}
    metrics = {name: f"metrics.md#{_anchor(one.names[0])}" for one in all_metrics() for name in (*one.names, one.name)}
    return keys | metrics


def _anchor(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name).strip("-")


def _link(match: re.Match[str]) -> str:
    """Returns the link of a name that is a key or a metric, and any other match as it is."""
    target = _targets().get(match[1])
    return f"[`{match[1]}`]({target})" if target else match[0]


def with_reference_links(markdown: str) -> str:
    """Returns Markdown in which the name of a key or a metric, alone in code, is a link to its entry."""
    return outside_fences(markdown, lambda line: line if line.startswith("#") else _CODE.sub(_link, line))


def _linked(text: str) -> str:
    """Returns the text of an entry with the names of keys and metrics as links."""
    return _WORD.sub(_link, text.replace("<", "&lt;").replace("|", "\\|"))


def configuration_page() -> str:
    """Returns the page with every configuration key."""
    parts = [
        "# Configuration\n",
        "A configuration is a TOML file with the sections below; every key is also an argument of the commands, "
        "`section.key=value`. An unknown key or a value out of range is one line and exit code 2, before anything is "
        "loaded. `saga-dist config KEY` prints an entry of this page in the terminal.\n",
        "For completion and checks in an editor that reads JSON schemas (Even Better TOML, taplo), write the schema "
        "beside your configuration and name it in the first line:\n",
        "```\nsaga-dist config --schema > saga-dist.schema.json\n```\n",
        "```toml\n#:schema ./saga-dist.schema.json\n```\n",
        "*Paper* is the published value, where there is one.\n",
    ]
    for section in config_sections():
        parts.append(f"## [{section.name}] {{#{_anchor(section.name)}}}\n\n{_linked(section.about)}\n")
        parts += map(_key, section.keys)
    return "\n".join(parts)


def _key(key: ConfigKey) -> str:
    facts = [f"{_linked(key.values)}", f"unit: {key.unit}" if key.unit else "", f"default: `{key.default}`"]
    facts.append(f"paper: `{key.paper}`" if key.paper else "")
    return (
        f"### `{key.key}` {{#{_anchor(key.key)}}}\n\n{_linked(_sentence(key.meaning))}\n\n"
        f"- {'; '.join(filter(None, facts))}\n- **Change it:** {_linked(key.change)}\n"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


def metrics_page() -> str:
    """Returns the page with every metric."""
    parts = [
        "# Metrics\n",
        "Each row of `metrics.jsonl` is one JSON object: the step, and the names below. TensorBoard, Weights & Biases, "
        "MLflow and Prometheus receive the same. `saga-dist metrics NAME` prints an entry of this page in the "
        "terminal. `{a,b}` in a name stands for each of its alternatives, `{N}` for a number.\n",
        "A run is watched with five of them: [`rollout/reward_mean`](#rollout-reward_mean), "
        "[`rollout/contributing_share`](#rollout-contributing_share), [`share/tower_grpo`](#share-tower_dml), "
        "[`rollout/unparseable_share`](#rollout-unparseable_share) and "
        "[`validation/recall_at_1`](#validation-recall_at_1).\n",
    ]
    for group in metric_groups():
        parts.append(f"## {group.title}\n\n{with_reference_links(group.about)}\n")
        parts += map(_metric, group.metric)
    return "\n".join(parts)


def _metric(metric: Metric) -> str:
    facts = [
        ("In the report", metric.title),
        ("Unit", metric.unit),
        ("Healthy", metric.healthy),
        ("Otherwise", metric.otherwise),
        ("Only", metric.only),
    ]
    lines = [f"- **{label}:** {_linked(text)}" for label, text in facts if text]
    heading = f"### `{metric.name}` {{#{_anchor(metric.names[0])}}}"
    return "\n".join([heading, "", _linked(metric.measures), "", *lines, ""])
