"""Runs the chosen sections one after the other and writes what they found; imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_dist.diagnostics.gpu_check.isolation import Outcome, run_isolated
from saga_dist.diagnostics.gpu_check.rates import measured_rates
from saga_dist.diagnostics.gpu_check.sections import CheckSection
from saga_dist.diagnostics.gpu_check.sizes import SIZES, check_size, size_for
from saga_dist.runtime.validation.gpus import visible_gpus
from saga_dist.utils.atomic_io import require_new, write_atomic
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import append_line
from saga_dist.utils.stages import stage

AUTO = "auto"
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
    outcome: Outcome
    """Answer of its process."""

    @property
    def failed(self) -> bool:
        """True when the section neither gave results nor was skipped."""
        return bool(self.outcome.error)

    def as_json(self) -> dict[str, Any]:
        """Returns section, seconds, and ``results``, ``skipped`` or ``error``."""
        named = {"results": self.outcome.results, "skipped": self.outcome.skipped, "error": self.outcome.error}
        found = {name: value for name, value in named.items() if value}
        return {"section": self.section, "seconds": round(self.outcome.seconds, 2), **found}


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
        name: a key of ``SIZES``, or ``AUTO`` for the largest one for this machine's GPU.
        out: folder of the check.

    Raises:
        ConfigError: the size is unknown, or it is a released one and there is no GPU.
    """
    if name != AUTO:
        check_size(name)
        return name
    if visible_gpus() == 0:
        return size_for(0)
    stage("asking the GPU for its memory")
    found = run_isolated(MEMORY_FUNCTION, "", cap_s=MEMORY_CAP_S, log=out / "size.log")
    return size_for(int(found.results.get("bytes", 0)))


def run_sections(sections: Sequence[CheckSection], size: str, out: Path, *, limit_s: float) -> Iterator[SectionResult]:
    """Yields the result of each section as it ends, after appending it to ``RESULTS_NAME``.

    Args:
        sections: sections to run, in order.
        size: name of the size.
        out: folder of the check, which also gets a log of each section.
        limit_s: seconds for all sections together; a section that would start later is skipped.
    """
    deadline = time.monotonic() + limit_s
    for section in sections:
        left = deadline - time.monotonic()
        if left < LEAST_S:
            outcome = Outcome(0.0, skipped=f"no time left of {limit_s / 60:g} minutes; see --minutes and --sections")
        else:
            stage("measuring %s", section.name)
            outcome = run_isolated(
                section.function,
                size,
                cap_s=min(section.cap_s, left),
                log=out / f"{section.name}.log",
                environment=section.environment,
            )
        result = SectionResult(section.name, outcome)
        append_line(out / RESULTS_NAME, json.dumps(result.as_json()))
        yield result


def write_rates(results: Sequence[SectionResult], size: str, out: Path) -> list[str]:
    """Writes the measured rates into ``RATES_NAME``, in the form that ``estimate --measured`` reads.

    Args:
        results: results of all sections.
        size: name of the size that was measured.
        out: folder of the check.

    Returns:
        Names of the rates; without any, no file is written.
    """
    found = {result.section: result.outcome.results for result in results if result.outcome.results}
    rates = measured_rates(found, SIZES[size])
    if rates:
        content = {"rates": rates, "measured": {}, "size": size, "sections": found}
        write_atomic(out / RATES_NAME, (json.dumps(content, indent=2) + "\n").encode(), option="--out")
    return list(rates)
