"""Configuration and directory of a training, resolved in one way for the command and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saga_dist.config import RunConfig
from saga_dist.config.loading import override_list, resolve_config
from saga_dist.errors import ConfigError
from saga_dist.utils.output_errors import refuse_package_cache


class ResolvedRun(NamedTuple):
    """A training that is ready to be validated and started."""

    config: RunConfig
    """The whole configuration."""
    directory: Path
    """Absolute path of the run directory, which need not exist."""
    fitted: list[str] | None
    """Overrides that fit the run to its data set; None when it was not to be fitted."""


def resolve_run(
    source: str | Path | Mapping[str, Any] | RunConfig,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    from_recording: str | Path | None = None,
    fit_to_data: bool = False,
) -> ResolvedRun:
    """Returns configuration and directory of a training; imports nothing heavy.

    Args:
        source: TOML file, name of a shipped one, sections as a mapping, or a configuration.
        overrides: strings ``section.key=value``.
        run_dir: the run directory; None: ``run.directory``, else a folder in ``runs/`` named after the file.
        from_recording: run directory whose recorded groups are trained on; None to sample completions.
        fit_to_data: True to lower batch, images per class and pairs to what the data set allows.

    Raises:
        ConfigError: the configuration is wrong, or nothing names the run directory.
        DataError: the run is to be fitted and no settings fit the data set.
        OutputError: the run directory is in a copy of a job's working directory, which Ray removes.
    """
    given = [*override_list(overrides), *([] if from_recording is None else [f"rollout.recording={from_recording}"])]
    config, fitted = resolve_config(source, given), None
    if fit_to_data:
        from saga_dist.runtime.validation.fit import fit_to_data as fit

        fitted = fit(config)
        config = resolve_config(source, [*given, *fitted])
    default = Path("runs") / Path(source).stem if isinstance(source, str | Path) else None
    return ResolvedRun(config, run_directory(run_dir, config.run.directory, default=default), fitted)


def run_directory(option: str | Path | None, configured: str, *, default: Path | None) -> Path:
    """Returns the run directory as an absolute path: the first one given of option, configuration and default.

    Args:
        option: value of ``--run-dir``; None when it is not given.
        configured: ``run.directory`` of the configuration; empty when it is not set.
        default: directory used without the other two; None for none.

    Raises:
        ConfigError: none of the three is given.
        OutputError: it is in a copy of a job's working directory, which Ray removes.
    """
    chosen = option or configured or default
    if chosen is None:
        raise ConfigError("no run directory", where="run_dir", fix="give run_dir, or set run.directory")
    refuse_package_cache(Path(chosen), option="--run-dir")
    return Path(chosen).absolute()
