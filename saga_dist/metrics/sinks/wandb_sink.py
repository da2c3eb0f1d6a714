"""Weights & Biases."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError
from saga_dist.metrics.group_words import GroupSample, group_text
from saga_dist.metrics.sinks.identity import first_line, run_identity

if TYPE_CHECKING:
    from saga_dist.types import StepResult


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
                f"logging.wandb = {self._project!r} cannot be used ({first_line(error)})",
                fix='log in with `wandb login`, set WANDB_MODE=offline, or set logging.wandb = ""',
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, result: StepResult) -> None:
        """Logs the metrics of one step."""
        self._run.log({"step": result.step, **result.metrics})

    def write_group(self, sample: GroupSample) -> None:
        """Logs the group as ``group/completions``, with all untrusted text escaped, and ``group/images``."""
        import wandb

        text = f"<pre>{html.escape(group_text(sample.group))}</pre>"
        images = [wandb.Image(image, caption=f"image {name}") for name, image in zip("ab", sample.images, strict=True)]
        self._run.log({"step": sample.step, "group/completions": wandb.Html(text), "group/images": images})

    def close(self) -> None:
        """Finishes the wandb run."""
        if self._run is not None:
            self._run.finish()
