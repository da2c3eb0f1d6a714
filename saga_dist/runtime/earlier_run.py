"""The run that a directory already holds: how far it came, and whether a configuration goes on with it."""

from __future__ import annotations

from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.config.comparison import name_keys
from saga_dist.errors import ConfigError

RESULTS_OF_STEPS = ("checkpoints/step_*", "rollouts/*.arrow", "model/*", "results.json")
"""Files of a run directory that only a run with finished steps, or with a finished evaluation, has."""
LINES_OF_STEPS = ("metrics.jsonl", "ledger.jsonl")
"""Files of a run directory with a line for each optimizer step; a failed start may leave them empty."""


def took_steps(run_dir: Path) -> bool:
    """Returns True when a run directory holds the result of an optimizer step, of a recording or of an evaluation."""
    if any(next(run_dir.glob(pattern), None) is not None for pattern in RESULTS_OF_STEPS):
        return True
    return any((run_dir / name).is_file() and (run_dir / name).stat().st_size for name in LINES_OF_STEPS)


def changed_keys(run_dir: Path, config: RunConfig, *, option: str = "--run-dir") -> list[str]:
    """Returns the keys that decide the result and differ from those of the run in a directory; empty without a run.

    Args:
        run_dir: the run directory.
        config: the configuration to start.
        option: command-line option that names another directory, for the error.

    Raises:
        ConfigError: the configurations differ, or this version cannot read the saved one, and the run has taken steps.
        CheckpointError: ``config.json`` is not valid JSON.
    """
    if not (run_dir / "config.json").exists():
        return []
    try:
        differences = load_run_config(run_dir).differences(config)
    except ConfigError:
        if took_steps(run_dir):
            raise
        return ["config.json holds keys or values that are not valid"]
    if differences and took_steps(run_dir):
        raise ConfigError(
            f"the run directory belongs to another configuration: {name_keys(differences)}",
            where=str(run_dir),
            fix=f"choose a new {option} or use the old values",
        )
    return differences


def is_unfinished_start(run_dir: Path) -> bool:
    """Returns True for a directory without ``config.json`` that holds nothing but what a start leaves before it.

    These are hidden files, locks, and empty folders.
    """
    return all(
        entry.name.startswith(".") or entry.suffix == ".lock" or (entry.is_dir() and not any(entry.iterdir()))
        for entry in run_dir.iterdir()
    )
