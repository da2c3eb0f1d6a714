"""What pages and configurations say about differences from the paper is what the values say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from saga_dist.config import load_config, parse_config
from saga_dist.config.paper_values import PAPER_VALUES, deviations
from saga_dist.standin import DEMO_CONFIG

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("cub", "cars", "aircraft", "inat_aves")


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def readme_rows() -> dict[str, tuple[str, str, str]]:
    """Key to (paper, default, demo) in the table of deviations in docs/paper.md."""
    section = (ROOT / "docs" / "paper.md").read_text().split("## Deviations from the paper")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    return {key: values for key, *values in rows}  # type: ignore[misc]


def test_readme_lists_every_default_and_demo_value_that_differs() -> None:
    default = parse_config({"data": {"layout": "cub", "root": "/data", "image_size": 224}}, where="default")
    demo = load_config(DEMO_CONFIG, [])
    differing = {one.key: one.paper for config in (default, demo) for one in deviations(config)}
    expected = {}
    for key, paper in differing.items():
        section, name = key.split(".")
        values = (getattr(getattr(config, section), name) for config in (default, demo))
        expected[key] = [shown(value) for value in (paper, *values)]
    assert {key: list(values) for key, values in readme_rows().items()} == expected


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_have_the_papers_values_but_for_the_limit_on_micro_batches(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.toml", ["data.root=/data"])
    assert [one.key for one in deviations(config)] == ["rollout.max_micro_batches"]


@pytest.mark.parametrize(
    "path", [DEMO_CONFIG, ROOT / "configs" / "birds.toml", ROOT / "configs" / "evidence" / "h.toml"]
)
def test_a_configuration_marks_what_it_sets_differently(path: Path) -> None:
    text = Path(path).read_text()
    for section, values in tomllib.loads(text).items():
        for name, value in values.items():
            if PAPER_VALUES.get(f"{section}.{name}", value) != value:
                line = next(line for line in text.splitlines() if re.match(rf"{name}\s*=", line))
                assert "# deviation" in line, f"{path}: {line}"


def test_a_value_that_differs_is_found() -> None:
    raw = {"data": {"layout": "cub", "root": "x", "image_size": 224, "val_fraction": 0}, "optimizer": {"clip_norm": 2}}
    found = {one.key: (one.paper, one.configured) for one in deviations(parse_config(raw, where="test"))}
    assert found == {"optimizer.clip_norm": (1.0, 2.0), "rollout.max_micro_batches": ("no limit", 8)}
