"""Builds the sinks that the section ``logging`` configures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from saga_dist.config import LoggingSection, RunConfig
from saga_dist.errors import ConfigError
from saga_dist.metrics.sinks.mlflow_sink import MlflowSink
from saga_dist.metrics.sinks.protocol import MetricSink
from saga_dist.metrics.sinks.tensorboard_sink import TensorBoardSink
from saga_dist.metrics.sinks.wandb_sink import WandbSink


def require_loggers(section: LoggingSection) -> None:
    """Checks that the packages of the configured sinks are installed, without importing them.

    Raises:
        ConfigError: a package is not installed.
    """
    chosen = (("tensorboard", section.tensorboard), ("wandb", section.wandb), ("mlflow", section.mlflow))
    for name, wanted in chosen:
        if wanted and importlib.util.find_spec(name) is None:
            off = "false" if name == "tensorboard" else '""'
            raise ConfigError(
                f"logging.{name} is set, but the package {name} is not installed",
                fix=f'pip install "saga-dist[{name}]", or set logging.{name} = {off}',
            )


def build_sinks(config: RunConfig, run_dir: Path) -> list[MetricSink]:
    """Returns the configured sinks, not yet open."""
    section, sinks = config.logging, list[MetricSink]()
    if section.tensorboard:
        sinks.append(TensorBoardSink(run_dir / "tensorboard"))
    if section.wandb:
        sinks.append(WandbSink(section.wandb, run_dir, config))
    if section.mlflow:
        sinks.append(MlflowSink(section.mlflow, run_dir, config))
    return sinks
