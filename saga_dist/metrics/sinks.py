"""Metric sinks besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow; configured in section ``[logging]``.

Each sink is opened once, after the step from which the run resumes is determined, and receives every later step once.
The libraries are imported when a sink is opened, so that ``--help``, ``--dry-run`` and the workers do not load them.
Prometheus metrics are exported through Ray (``runtime/ray/prometheus.py``).
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
from saga_dist.utils.output_errors import output_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from saga_dist.types import StepResult

log = logging.getLogger(__name__)


class MetricSink(Protocol):
    """Receives the metrics of a run, step by step."""

    def open(self, *, after_step: int) -> None:
        """Starts the sink, or continues it after ``after_step``; rows of later steps are dropped or written again."""

    def write(self, result: StepResult) -> None:
        """Writes the metrics of one step."""

    def close(self) -> None:
        """Closes the sink; does nothing when it was never opened."""


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


class TensorBoardSink:
    """Event files in ``RUN/tensorboard``.

    A resumed run writes a new file whose first record makes TensorBoard drop the steps after the checkpoint.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def open(self, *, after_step: int) -> None:
        """Opens a new event file; TensorBoard drops the steps after ``after_step`` of earlier files."""
        from torch.utils.tensorboard import SummaryWriter

        self._wait_for_a_later_name()
        with output_errors(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=after_step + 1)

    def _wait_for_a_later_name(self) -> None:
        """Waits until the second of the newest event file is over.

        TensorBoard reads event files in the order of their names, which begin with the second of their creation. A file
        of the same second may have the smaller name (pid and counter are not padded), and would be read first.
        """
        names = [path.name for path in self._folder.glob("events.out.tfevents.*")]
        seconds = [int(name.split(".")[3]) for name in names if name.split(".")[3].isdigit()]
        if seconds and max(seconds) == int(time.time()):
            time.sleep(1 - time.time() % 1)

    def write(self, result: StepResult) -> None:
        """Writes one scalar per metric and flushes the file."""
        assert self._writer is not None
        with output_errors(self._folder):
            for name, value in result.metrics.items():
                self._writer.add_scalar(name, value, result.step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A run in Weights & Biases. ``WANDB_MODE=offline`` keeps it in the run directory until ``wandb sync``.

    The step counter of wandb only increases, so a resumed run could not log a step again: the charts use the metric
    ``step`` as their axis instead.

    Args:
        project: name of the wandb project.
        run_dir: run directory; its name is the name of the wandb run.
        config: configuration of the run, uploaded with it.
    """

    def __init__(self, project: str, run_dir: Path, config: RunConfig) -> None:
        self._project, self._run_dir, self._config = project, run_dir, config
        self._run: Any = None

    def open(self, *, after_step: int) -> None:
        """Starts the wandb run, or resumes that of an earlier attempt at the same run directory.

        Raises:
            ConfigError: the run cannot be started, e.g. because no user is logged in.
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
        """Logs the metrics of one step."""
        self._run.log({"step": result.step, **result.metrics})

    def close(self) -> None:
        """Finishes the wandb run."""
        if self._run is not None:
            self._run.finish()


class MlflowSink:
    """A run in MLflow, on a server or in another store that a tracking URI names.

    MLflow 3 accepts a folder (``file:///path``) only with ``MLFLOW_ALLOW_FILE_STORE=true``, and ``sqlite:///file`` only
    with the whole package ``mlflow``, not with ``mlflow-skinny``. When the server fails during training, its rows are
    lost in MLflow and training continues: the first failure is logged, and later rows are still sent.

    Args:
        uri: tracking URI.
        run_dir: run directory; its name is the name of the MLflow run.
        config: configuration of the run, logged as parameters.
    """

    EXPERIMENT = "saga-dist"
    """Name of the MLflow experiment."""
    IDENTITY = "saga_dist.run"
    """Tag with the ``run_identity``, by which a resumed run finds its MLflow run."""

    def __init__(self, uri: str, run_dir: Path, config: RunConfig) -> None:
        self._uri, self._run_dir, self._config = uri, run_dir, config
        self._client: Any = None
        self._run_id = ""
        self._failed = False

    def open(self, *, after_step: int) -> None:
        """Creates the MLflow run, or continues that of an earlier attempt at the same run directory.

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
                for start in range(0, len(params), 100):  # MLflow accepts at most 100 per request
                    client.log_batch(self._run_id, params=params[start : start + 100])
        except MlflowException as error:
            raise ConfigError(
                f"logging.mlflow = {self._uri!r} cannot be used ({_first_line(error)})",
                fix='start the tracking server, or set logging.mlflow = ""',
            ) from error
        self._client = client

    def write(self, result: StepResult) -> None:
        """Sends the metrics of one step; a failure is logged once and not raised."""
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
        """Marks the MLflow run as finished; a failure is logged and not raised."""
        from mlflow.exceptions import MlflowException

        if self._client is None:
            return
        try:
            self._client.set_terminated(self._run_id)
        except MlflowException as error:
            log.warning("the MLflow run could not be marked as finished: %s", _first_line(error))


def run_identity(run_dir: Path, config: RunConfig) -> str:
    """Returns an id that is equal for every attempt at a run directory with a configuration: 16 hexadecimal digits."""
    return hashlib.sha256(f"{run_dir.resolve()} {config.digest()}".encode()).hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
