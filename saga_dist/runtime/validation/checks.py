"""The table of all checks of a run, and ``validate_run``, which ``train``, ``rollout``, ``sweep`` and ``doctor`` call.

A check is a function of ``RunFacts``. It raises a ``UserError`` for a mistake with which the run cannot start or cannot
finish, and otherwise returns a warning, or an empty text. It imports no torch and loads no weights; only the check of a
cluster that the run joins imports Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.config.registries import LAYOUTS
from saga_dist.errors import ConfigError, UserError
from saga_dist.runtime.validation import cluster, data, gpu_requests, machine, method, model, sampling
from saga_dist.runtime.validation.facts import RunFacts

Check = Callable[[RunFacts], str]
"""One check: returns a warning or an empty text, and raises a ``UserError`` for a mistake."""

CHECKS: tuple[Check, ...] = (
    machine.check_run_directory,
    method.check_loggers,
    method.check_vocabulary,
    model.check_model_folder,
    model.check_layer,
    model.check_trained_part,
    model.check_image_size,
    model.check_context,
    machine.check_engine,
    sampling.check_sampling,
    machine.check_devices,
    machine.check_local_resources,
    gpu_requests.check_gpu_requests,
    machine.check_disk,
    data.check_recording,
    cluster.check_cluster,
)
"""Checks of built-in objects, which import nothing of the user's."""
DATA_CHECKS: tuple[Check, ...] = (data.check_data,)
"""Checks that list the data set, with the layout that is configured."""
OWN_CHECKS: tuple[Check, ...] = (method.check_own_objects,)
"""Checks that import the user's own objects, tried last and only when no other check found a mistake."""


def validate_run(config: RunConfig, directory: Path, *, option: str = "--run-dir") -> list[str]:
    """Returns warnings about a run that can start; nothing is loaded and no file is changed.

    Args:
        config: the whole configuration.
        directory: the run directory, which need not exist.
        option: option of the command line that named the directory.

    Raises:
        UserError: there is a mistake; with several, one error names all.
    """
    run = RunFacts(config, directory, option=option)
    warnings: list[str] = []
    mistakes: dict[str, UserError] = {}
    for check in (*CHECKS, *DATA_CHECKS, *OWN_CHECKS):
        if mistakes and (check in OWN_CHECKS or (check in DATA_CHECKS and config.data.layout not in LAYOUTS.builtin)):
            continue
        try:
            if warning := check(run):
                warnings.append(warning)
        except UserError as error:
            mistakes.setdefault(str(error), error)
    if mistakes:
        raise _one_error(list(mistakes.values()))
    return warnings


def _one_error(mistakes: list[UserError]) -> UserError:
    if len(mistakes) == 1:
        return mistakes[0]
    listed = "; ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
    return ConfigError(f"{len(mistakes)} mistakes: {listed}")
