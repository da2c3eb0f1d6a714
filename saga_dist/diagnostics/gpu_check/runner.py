"""Runs the chosen sections one after the other and writes what they found; imports no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_dist.diagnostics.gpu_check.isolation import Outcome, run_isolated
from saga_dist.diagnostics.gpu_check.rates import measured_rates
from saga_dist.diagnostics.gpu_check.sections import CheckSection
from saga_dist.diagnostics.gpu_check.sizes import AUTO, SIZES, size_for
from saga_dist.errors import ConfigError, SagaError
from saga_dist.runtime.validation.gpus import visible_gpus
from saga_dist.utils.atomic_io import require_new, write_atomic
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import append_line
from saga_dist.utils.stages import stage

RESULTS_NAME, RATES_NAME = "results.jsonl", "rates.json"
"""Files of a check: a line for each section, and the rates for ``estimate --measured``."""
MEMORY_FUNCTION = "saga_dist.diagnostics.gpu_check.environment:gpu_memory"
MEMORY_CAP_S = 60.0
"""Longest time to find out how much memory the GPU has, seconds."""
LEAST_S = 1.0
"""Seconds that must be left of the whole check for a section to start."""


@dataclass(frozen=True, slots=True)
class SectionResult:
    """Result of one section."""

    section: str
    """Name of the section."""
    size: str
    """Name of the size."""
    outcome: Outcome
    """Answer of its process."""

    @property
    def failed(self) -> bool:
        """True when the section neither gave results nor was skipped."""
        return bool(self.outcome.error)

    def as_json(self) -> dict[str, Any]:
        """Returns section, size, seconds, and ``results``, ``skipped`` or ``error``."""
        named = {"results": self.outcome.results, "skipped": self.outcome.skipped, "error": self.outcome.error}
        found = {name: value for name, value in named.items() if value}
        return {"section": self.section, "size": self.size, "seconds": round(self.outcome.seconds, 2), **found}


def prepare_folder(out: Path) -> None:
    """Creates the folder of a check.

    Raises:
        OutputError: there is something in it already, or it cannot be created.
    """
    require_new(out, option="--out")
    with output_errors(out, option="--out"):
        out.mkdir(parents=True, exist_ok=True)


def choose_size(name: str, out: Path) -> str:
    """Returns the name of the size to run.

    Args:
        name: a name that ``check_size`` accepts.
        out: folder of the check.

    Raises:
        SagaError: the GPU does not answer.
        ConfigError: there is a GPU, and torch cannot use it.
    """
    if name != AUTO:
        return name
    gpus = visible_gpus()
    if gpus == 0:
        return size_for(0)
    stage("asking the GPU for its memory")
    found = run_isolated(MEMORY_FUNCTION, "", cap_s=MEMORY_CAP_S, log=out / "size.log")
    if found.error:
        raise SagaError(f"the GPU does not answer: {found.error}", where="check-gpu", fix="see nvidia-smi")
    memory = int(found.results["bytes"])
    if gpus and not memory:
        raise ConfigError(
            "there is a GPU, and torch cannot use it",
            where="check-gpu",
            expected="torch for CUDA and a driver that fits it",
            fix="pip install 'saga-dist[gpu]', or choose --size tiny",
        )
    return size_for(memory)


class CheckRun:
    """One check: runs sections within a limit of time, and keeps and writes their results.

    Args:
        size: name of the size.
        out: folder of the check, which also gets a log of each section.
        limit_s: seconds for all sections together; a section that would start later is skipped.
    """

    def __init__(self, size: str, out: Path, *, limit_s: float) -> None:
        self.results: list[SectionResult] = []
        """Results so far."""
        self._size, self._out, self._limit_s = size, out, limit_s
        self._deadline = time.monotonic() + limit_s

    def run(self, section: CheckSection) -> SectionResult:
        """Runs a section, appends its result to ``RESULTS_NAME`` and returns it."""
        result = SectionResult(section.name, self._size, self._outcome(section))
        append_line(self._out / RESULTS_NAME, json.dumps(result.as_json()))
        self.results.append(result)
        return result

    def write_rates(self) -> Path | None:
        """Writes the measured rates in the form that ``estimate --measured`` reads; returns the file.

        Returns None, and writes nothing, when no section has measured a rate.
        """
        found = {result.section: result.outcome.results for result in self.results if result.outcome.results}
        rates = measured_rates(found, SIZES[self._size])
        if not rates:
            return None
        content = {"rates": rates, "measured": {}, "size": self._size, "sections": found}
        write_atomic(self._out / RATES_NAME, (json.dumps(content, indent=2) + "\n").encode(), option="--out")
        return self._out / RATES_NAME

    def _outcome(self, section: CheckSection) -> Outcome:
        left = self._deadline - time.monotonic()
        if left < LEAST_S:
            reason = f"no time left of {self._limit_s / 60:g} minutes; raise --minutes, or choose --sections"
            return Outcome(0.0, skipped=reason)
        return run_isolated(
            section.function,
            self._size,
            cap_s=min(section.cap_s, left),
            log=self._out / f"{section.name}.log",
            environment=section.environment,
        )
