"""Schemas, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from saga_dist.config import RunConfig, parse_config

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"


def _validators() -> dict[str, Draft7Validator]:
    found = {}
    for name in ("kuberay_v1.schema.json", "kubernetes.schema.json"):
        schema = json.loads((DATA / name).read_text())
        for kind in schema["$defs"]:
            found[kind] = Draft7Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})
    return found


VALIDATORS = _validators()


@pytest.fixture(scope="session")
def mistakes() -> Callable[[dict[str, Any]], list[str]]:
    """Returns what a Kubernetes document has wrong: path and message, by its kind's schema."""

    def find(document: dict[str, Any]) -> list[str]:
        errors = VALIDATORS[document["kind"]].iter_errors(document)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]

    return find


@pytest.fixture(scope="session")
def manifest() -> Callable[..., str]:
    """Returns what ``saga-dist manifest`` prints; raises what it raises."""
    from saga_dist.cli.main import app

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["manifest", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture(scope="session")
def documents(manifest: Callable[..., str]) -> Callable[..., dict[str, dict[str, Any]]]:
    """Returns the documents that ``saga-dist manifest`` prints, by kind."""
    return lambda *arguments: {document["kind"]: document for document in yaml.safe_load_all(manifest(*arguments))}


@pytest.fixture(scope="session")
def paper_run() -> Callable[..., RunConfig]:
    """Returns a run of the paper's kind with the given sections changed."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        tree = {
            "data": {"root": "/data/cub"},
            "model": {"path": "/weights/Qwen3-VL-8B-Instruct"},
            "rollout": {"num_gpus": 1.0},
            "runtime": {"learner_num_gpus": 1.0},
        }
        for name, values in sections.items():
            tree[name] = tree.get(name, {}) | values
        return parse_config(tree, where="test")

    return make
