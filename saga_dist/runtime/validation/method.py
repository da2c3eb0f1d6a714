"""Checks of the method: the vocabulary of the prompt, and the loggers."""

from __future__ import annotations

from saga_dist.metrics.sinks import require_loggers
from saga_dist.runtime.build import build_vocabulary
from saga_dist.runtime.extension_check import check_extensions
from saga_dist.runtime.validation.facts import RunFacts


def check_vocabulary(run: RunFacts) -> str:
    """Checks that the prompt's vocabulary is built in or a readable file.

    Raises:
        ConfigError: it is not.
    """
    if run.config.needs_mllm:
        build_vocabulary(run.config)
    return ""


def check_loggers(run: RunFacts) -> str:
    """Checks that the packages of the configured loggers are installed.

    Raises:
        ConfigError: one is not.
    """
    require_loggers(run.config.logging)
    return ""


def check_own_objects(run: RunFacts) -> str:
    """Imports and tries the objects of the user's own.

    Raises:
        ConfigError: one cannot be used.
    """
    check_extensions(run.config)
    return ""
