"""Training, evaluation and embedding from Python, for notebooks and scripts: ``saga_dist.train`` and its like.

Each function does what the command of its name does, with the same checks, and calls the same functions. A mistake is
raised as a ``UserError``, whose text is the line that the command prints. Nothing heavy is imported before the
arguments are checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError
from saga_dist.runtime.stopping import stop_on_signal
from saga_dist.utils.output_errors import disk_errors

if TYPE_CHECKING:
    from saga_dist.retrieval.embed import Embedded
    from saga_dist.retrieval.results import MethodResult, Results, SplitResult
    from saga_dist.types import StepResult

log = logging.getLogger(__name__)

OnStep = Callable[[int, Mapping[str, float]], None]
"""Callback of ``train``: the optimizer step, counted from 1, and its metrics by name (page *Metrics*)."""


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """Result of ``train``: the files of a finished run, and its numbers."""

    directory: Path
    """Absolute path of the run directory."""
    results: Results
    """Content of ``results.json``: retrieval results by method and split."""
    metrics: Mapping[str, float]
    """Metrics of the last optimizer step by name, validation included."""

    @property
    def encoder(self) -> Path:
        """Folder of the trained encoder, which ``saga_dist.load`` takes."""
        return self.directory / "model"

    @property
    def trained(self) -> MethodResult:
        """Results of the trained encoder; those of the pre-trained one stand beside it in ``results``."""
        from saga_dist.retrieval.results import TRAINED

        return self.results.method(TRAINED)


def train(
    config: str | Path | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    from_recording: str | Path | None = None,
    fit_to_data: bool = False,
    on_step: OnStep | None = None,
) -> TrainedRun:
    """Trains one configuration to its end and returns its files and numbers; the same call resumes.

    In the main thread SIGTERM and SIGINT (a notebook's "interrupt") end the run after the present step with a
    checkpoint. An exception of ``on_step`` ends it too: workers are stopped, the directory is free again, the exception
    reaches the caller, and the same call goes on from the last checkpoint.

    Args:
        config: TOML file, name of a shipped one (``birds``), sections as a mapping, or a configuration of
            ``load_config``.
        overrides: strings ``section.key=value``, applied in order.
        run_dir: the run directory; None: ``run.directory``, else ``runs/`` and the name of the TOML file.
        from_recording: run directory whose recorded groups are trained on; None to sample completions.
        fit_to_data: True to lower batch, images per class and pairs to what the data set allows.
        on_step: called after every optimizer step with its number and its metrics.

    Raises:
        UserError: configuration, data, model or run directory cannot be used.
        Interrupted: a signal was received; before the first step at once, later after writing a checkpoint.
        SagaError: the system failed; the same call resumes.
    """
    from saga_dist.runtime.resolve import resolve_run
    from saga_dist.runtime.validation import validate_run

    with disk_errors(), stop_on_signal() as stop:
        resolved, directory, _ = resolve_run(
            config, overrides, run_dir=run_dir, from_recording=from_recording, fit_to_data=fit_to_data
        )
        for warning in validate_run(resolved, directory):
            log.warning("%s", warning)
        from saga_dist.runtime import run

        def tell(result: StepResult) -> None:
            if on_step is not None:
                on_step(result.step, result.metrics)

        results = run.train(resolved, directory, on_step=tell, stop=stop)
        return TrainedRun(directory, results, _last_metrics(directory))


def evaluate(
    target: str | Path | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str] = (),
    *,
    encoder: str = "",
    split: str = "test",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SplitResult:
    """Returns the retrieval results of a run's encoder, or of any frozen encoder, on unseen classes.

    Args:
        target: run directory; with ``encoder`` the configuration of the data, as for ``train``.
        overrides: strings ``section.key=value``, with ``encoder`` only.
        encoder: frozen encoder ``timm:NAME``, ``hf:PATH``, ``run:DIR`` or ``py:package.module:object``; empty for that
            of the run.
        split: ``test`` or ``val``.
        on_progress: called with the number of images encoded and of all images, with ``encoder`` only.

    Raises:
        UserError: the run, the encoder, the data or the split cannot be used.
    """
    with disk_errors():
        if not encoder:
            if overrides or not isinstance(target, str | Path):
                raise ConfigError("a configuration without encoder", where="evaluate", expected="a run directory alone")
            from saga_dist.runtime.run import evaluate_encoder

            return evaluate_encoder(Path(target), split).splits[split]
        from saga_dist.baselines.frozen_encoder import parse_spec
        from saga_dist.config.loading import resolve_config

        parse_spec(encoder)  # a wrong value must show before the seconds that torch takes to load
        config = resolve_config(target, overrides)
        from saga_dist.baselines.evaluate import compare

        return compare(encoder, config, split, on_progress=on_progress).result


def embed(
    model: str | Path,
    folder: str | Path,
    out: str | Path,
    *,
    max_bad_share: float = 0.05,
    device: str = "cpu",
    jobs: int = 0,
    family: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Writes the embeddings of all images below a folder to a table; the same call resumes.

    For a few images in memory, ``saga_dist.load(model).encode(images)`` returns an array and writes nothing.

    Args:
        model: run directory, or the folder of an encoder.
        folder: folder of images, searched at every depth.
        out: file to write, .arrow or .parquet.
        max_bad_share: largest allowed share of unusable images, in [0, 1]; they are listed beside ``out``.
        device: device of the encoder, e.g. ``cpu`` or ``cuda:0``.
        jobs: threads that decode; 0: one per core.
        family: import path ``package.module:object`` of the encoder's family, where it is not built in.
        on_progress: called with the number of images done and of all images.

    Raises:
        UserError: model, folder, device or output cannot be used, or too many images are unusable.
    """
    from saga_dist.models.encoder_folder import encoder_folder
    from saga_dist.retrieval.identity import read_identity
    from saga_dist.retrieval.image_list import list_images
    from saga_dist.retrieval.tables import check_suffix
    from saga_dist.utils.directory_owner import owned_output

    out = Path(out)
    with disk_errors():
        check_suffix(out)
        list_images(Path(folder))  # a wrong folder must show before the seconds that the model takes to load
        saved = encoder_folder(model)
        with owned_output(out, option="out"):
            from saga_dist.models.encoder import load
            from saga_dist.retrieval.embed import embed_folder

            encoder, identity = load(saved, device=device, family=family), read_identity(saved)
            return embed_folder(
                encoder,
                identity,
                Path(folder),
                out,
                max_bad_share=max_bad_share,
                jobs=jobs,
                on_progress=on_progress,
            )


def _last_metrics(directory: Path) -> Mapping[str, float]:
    """Returns the metrics of the last step of a run, which may stand in several rows."""
    from saga_dist.metrics.log import MetricsLog

    rows = MetricsLog(directory / "metrics.jsonl").rows()
    last = max((row["step"] for row in rows), default=0)
    return {name: value for row in rows if row["step"] == last for name, value in row.items() if name != "step"}
