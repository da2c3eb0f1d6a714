"""Mistakes in calls of the Python API; all are found before anything heavy is loaded."""

from __future__ import annotations

from typing import Any

from bad_inputs.row import BadInput, Workspace

import saga_dist
from saga_dist.config import load_config

CALL, ARGUMENT = "call of the Python API", "configuration given to the Python API"


def train(*arguments: Any, **options: Any) -> Any:
    """Returns an act that calls ``saga_dist.train``."""
    return lambda workspace: saga_dist.train(*arguments, **options)


def train_without_directory(workspace: Workspace) -> object:
    return saga_dist.train(load_config(workspace.write_config()))


def train_from_no_recording(workspace: Workspace) -> object:
    return saga_dist.train(workspace.write_config(), run_dir="run", from_recording="elsewhere")


def embed_elsewhere(workspace: Workspace) -> object:
    return saga_dist.embed("runs/mine", "nowhere", "out.parquet")


def embed_without_encoder(workspace: Workspace) -> object:
    workspace.image_folder("photos", classes=1, images=1)
    return saga_dist.embed("runs/mine", "photos", "out.parquet")


def evaluate_other_kind(workspace: Workspace) -> object:
    return saga_dist.evaluate(workspace.write_config(), encoder="resnet50")


ROWS = [
    BadInput(
        "a number in place of a configuration",
        ARGUMENT,
        train(7),
        ("a configuration of type int", "a path, a mapping of sections or a RunConfig"),
    ),
    BadInput(
        "overrides as one string, which would be read letter by letter",
        ARGUMENT,
        train("birds", "run.steps=5"),
        ("overrides = 'run.steps=5'", "expected a list of strings: ['run.steps=5']"),
    ),
    BadInput(
        "a misspelt key in a mapping",
        ARGUMENT,
        train({"data": {"layout": "birds", "image_size": 80}, "run": {"stpes": 5}}, run_dir="run"),
        ("configuration: unknown key run.stpes", "did you mean run.steps?"),
    ),
    BadInput(
        "a section of a mapping that is no mapping",
        ARGUMENT,
        train({"data": "birds"}, run_dir="run"),
        ("configuration: data = 'birds'",),
    ),
    BadInput(
        "a configuration without a file and without a run directory",
        ARGUMENT,
        train_without_directory,
        ("run_dir: no run directory", "give run_dir, or set run.directory"),
    ),
    BadInput(
        "a recording that is no run directory, given to train",
        CALL,
        train_from_no_recording,
        ("elsewhere", "a run directory"),
    ),
    BadInput(
        "overrides of a run that is evaluated",
        CALL,
        lambda workspace: saga_dist.evaluate("runs/mine", ["run.seed=3"]),
        ("evaluate: a configuration without encoder", "expected a run directory alone"),
    ),
    BadInput(
        "an encoder to evaluate without its kind",
        CALL,
        evaluate_other_kind,
        ("resnet50", "timm:NAME"),
    ),
    BadInput(
        "a folder to embed that is not there",
        CALL,
        embed_elsewhere,
        ("nowhere",),
    ),
    BadInput(
        "an encoder to embed with that is not there",
        CALL,
        embed_without_encoder,
        ("runs/mine: no such folder", "check the path, or wait for the run to finish"),
    ),
    BadInput(
        "embeddings into a file of an unknown kind",
        CALL,
        lambda workspace: saga_dist.embed("runs/mine", "photos", "out.csv"),
        ("out.csv", ".arrow or .parquet"),
    ),
]
