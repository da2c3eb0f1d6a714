"""MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError
from saga_dist.metrics.group_words import GroupSample, group_text
from saga_dist.metrics.sinks.identity import first_line, run_identity

if TYPE_CHECKING:
    from saga_dist.types import StepResult

log = logging.getLogger(__name__)


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
                f"logging.mlflow = {self._uri!r} cannot be used ({first_line(error)})",
                fix='start the tracking server, or set logging.mlflow = ""',
            ) from error
        self._client = client

    def write(self, result: StepResult) -> None:
        """Sends the metrics of one step; a failure is logged once and not raised."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, result.step) for name, value in result.metrics.items()]
        with self._losses_logged(f"the metrics of step {result.step}"):
            self._client.log_batch(self._run_id, metrics=metrics)

    def write_group(self, sample: GroupSample) -> None:
        """Sends the group as files ``groups/step_*.txt`` and ``.png``; a failure is logged once and not raised."""
        stem = f"groups/step_{sample.step:06d}"
        with self._losses_logged(f"the group of step {sample.step}"):
            self._client.log_text(self._run_id, group_text(sample.group), f"{stem}.txt")
            for name, image in zip("ab", sample.images, strict=True):
                self._client.log_image(self._run_id, image, artifact_file=f"{stem}_{name}.png")

    @contextmanager
    def _losses_logged(self, what: str) -> Iterator[None]:
        """Turns the first failure of the block into a warning, and ignores later ones.

        Args:
            what: what the block sends, for the warning.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:  # files go to a store of their own, whose errors are OSErrors
            if not self._failed:
                log.warning("MLflow lost %s: %s", what, first_line(error))
            self._failed = True

    def close(self) -> None:
        """Marks the MLflow run as finished; a failure is logged and not raised."""
        from mlflow.exceptions import MlflowException

        if self._client is None:
            return
        try:
            self._client.set_terminated(self._run_id)
        except MlflowException as error:
            log.warning("the MLflow run could not be marked as finished: %s", first_line(error))
