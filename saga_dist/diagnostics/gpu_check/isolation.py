"""Runs a function in a process of its own that ends at a time cap, whatever the function does.

The process is a new interpreter, so that environment variables which torch reads at its import have an effect. All that
it and its libraries print goes to a log; its answer travels over a pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_dist.utils.output_files import file_to_write

CHILD = "saga_dist.diagnostics.gpu_check.child"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answer of an isolated function; exactly one of ``results``, ``skipped`` and ``error`` is set."""

    seconds: float
    """Wall seconds of the process, its imports included."""
    results: dict[str, Any] = field(default_factory=dict)
    """Results of the function by name."""
    skipped: str = ""
    """Reason why there is nothing to measure here."""
    error: str = ""
    """Reason why there are no results, one line."""


def run_isolated(
    function: str, argument: str, *, cap_s: float, log: Path, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Returns what a function returned, raised or left undone in a process of its own.

    Args:
        function: import path ``package.module:object``; it takes ``argument`` and returns JSON values by name.
        argument: argument of the function.
        cap_s: seconds after which the process and its children are killed.
        log: file for everything that is printed in the process.
        environment: further variables of the process; those of this process take precedence.

    Raises:
        OutputError: the log cannot be written.
    """
    started = time.perf_counter()
    with (
        file_to_write(log) as output,
        subprocess.Popen(
            [sys.executable, "-m", CHILD, function, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env={**(environment or {}), **os.environ},
            start_new_session=True,
        ) as process,
    ):
        try:
            answer, _ = process.communicate(timeout=cap_s)
        except subprocess.TimeoutExpired:
            return Outcome(time.perf_counter() - started, error=f"stopped at its time cap of {cap_s:.0f} s; see {log}")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children too, also after it has ended
    seconds = time.perf_counter() - started
    try:
        return Outcome(seconds, **json.loads(answer))
    except (ValueError, TypeError):
        return Outcome(seconds, error=f"its process {_ending(process.returncode)}; see {log}")


def _ending(code: int) -> str:
    """Returns how a process ended, from its return code: negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code} and no answer"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
