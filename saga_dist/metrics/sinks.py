"""Where the metrics go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow; section ``[logging]``.

Each sink is opened once, when it is known after which step the run goes on, and is told every step once. Libraries are
imported when a sink is opened, so that ``--help``, ``--dry-run`` and the workers know nothing of them. Prometheus is
Ray's business (``cluster/gauges.py``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saga_dist.config import LoggingSection, RunConfig
from saga_dist.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from saga_dist.types import StepResult

log = logging.getLogger(__name__)


class MetricSink(Protocol):
    """Takes the metrics of a run as they come."""

    def open(self, *, after_step: int) -> None:
        """Begins, or goes on after ``after_step``; what was told of later steps is told again or withdrawn."""

    def write(self, result: StepResult) -> None:
        """Takes one row of metrics."""

    def close(self) -> None:
        """Ends the stream; a sink that was never opened has nothing to end."""


def require_loggers(section: LoggingSection) -> None:
    """Checks before anything is loaded that the libraries of the chosen sinks are installed.

    Raises:
        ConfigError: one is not.
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


class TensorBoardSink:
    """Event files in ``RUN/tensorboard``.

    A resumed run writes a new file whose first record tells TensorBoard to forget the steps after the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def open(self, *, after_step: int) -> None:
        """Opens the event file of this attempt."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)

    def write(self, result: StepResult) -> None:
        """Writes one scalar per metric, at once on the disk."""
        assert self._writer is not None
        for name, value in result.metrics.items():
            self._writer.add_scalar(name, value, result.step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A run in Weights & Biases. ``WANDB_MODE=offline`` keeps it in the run directory until ``wandb sync``.

    Its own step counter only goes up, so a resumed run could not tell a step again: the charts use ``step`` instead.
    """

    def __init__(self, project: str, run_dir: Path, config: RunConfig) -> None:
        self._project, self._run_dir, self._config = project, run_dir, config
        self._run: Any = None

    def open(self, *, after_step: int) -> None:
        """Starts the run, or joins the one of an earlier attempt.

        Raises:
            ConfigError: it cannot be started, e.g. because nobody is logged in.
        """
        import wandb

        try:
            self._run = wandb.init(
                project=self._project,
                name=self._run_dir.name,
                id=run_identity(self._run_dir, self._config),
                resume="allow",
                dir=str(self._run_dir),
                config=self._config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"logging.wandb = {self._project!r} cannot be used ({_first_line(error)})",
                fix='log in with `wandb login`, set WANDB_MODE=offline, or set logging.wandb = ""',
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, result: StepResult) -> None:
        """Sends one row."""
        self._run.log({"step": result.step, **result.metrics})

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()


class MlflowSink:
    """A run in MLflow, on a server or wherever else its tracking URI leads.

    MLflow 3 takes a folder (``file:///path``) only with ``MLFLOW_ALLOW_FILE_STORE=true``, and ``sqlite:///file`` only
    with the whole package ``mlflow``, not with ``mlflow-skinny``. A server that does not answer costs metrics there,
    not the training: the first failure is logged, later rows are tried again.
    """

    EXPERIMENT = "saga-dist"
    IDENTITY = "saga_dist.run"
    """Tag by which a resumed run finds itself."""

    def __init__(self, uri: str, run_dir: Path, config: RunConfig) -> None:
        self._uri, self._run_dir, self._config = uri, run_dir, config
        self._client: Any = None
        self._run_id = ""
        self._failed = False

    def open(self, *, after_step: int) -> None:
        """Starts the run, or joins the one of an earlier attempt.

        Raises:
            ConfigError: the tracking server cannot be used.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        identity = run_identity(self._run_dir, self._config)
        try:
            client = MlflowClient(tracking_uri=self._uri)
            known = client.get_experiment_by_name(self.EXPERIMENT)
            experiment = client.create_experiment(self.EXPERIMENT) if known is None else known.experiment_id
            found = client.search_runs([experiment], f"tags.`{self.IDENTITY}` = '{identity}'", max_results=1)
            if found:
                self._run_id = found[0].info.run_id
            else:
                run = client.create_run(experiment, tags={self.IDENTITY: identity}, run_name=self._run_dir.name)
                self._run_id = run.info.run_id
                params = [
                    Param(f"{section}.{key}", str(value)[:500])
                    for section, values in self._config.model_dump(mode="json").items()
                    for key, value in values.items()
                ]
                for start in range(0, len(params), 100):  # what one request may hold
                    client.log_batch(self._run_id, params=params[start : start + 100])
        except MlflowException as error:
            raise ConfigError(
                f"logging.mlflow = {self._uri!r} cannot be used ({_first_line(error)})",
                fix='start the tracking server, or set logging.mlflow = ""',
            ) from error
        self._client = client

    def write(self, result: StepResult) -> None:
        """Sends one row."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, result.step) for name, value in result.metrics.items()]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            if not self._failed:
                log.warning("MLflow lost the metrics of step %d: %s", result.step, _first_line(error))
            self._failed = True

    def close(self) -> None:
        """Marks the run as finished."""
        from mlflow.exceptions import MlflowException

        if self._client is None:
            return
        try:
            self._client.set_terminated(self._run_id)
        except MlflowException as error:
            log.warning("MLflow was not told of the end: %s", _first_line(error))


def run_identity(run_dir: Path, config: RunConfig) -> str:
    """Returns the name by which another attempt at the same run directory is the same run."""
    return hashlib.sha256(f"{run_dir.resolve()} {config.digest()}".encode()).hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
