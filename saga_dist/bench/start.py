"""Start-up times: of ``--help``, of ``train --dry-run``, and until the first optimizer step.

There is no alternative to compare with; the targets are in seconds. Each figure is the wall time of a new process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from saga_dist.bench.common import BenchRow, Report, Size
from saga_dist.errors import TrainingError
from saga_dist.standin import DEMO_CONFIG
from saga_dist.utils.output_files import file_to_write

HELP_BAR_S, DRY_RUN_BAR_S = 0.5, 3.0
"""Targets in seconds."""
DEADLINE_S = 300.0
"""Longest wait for a process in seconds."""
_LESS_EVALUATION = ("evaluation.verdict_pairs=0", "evaluation.bootstrap_resamples=100", "data.birds.probe_images=0")


def run(size: Size) -> Report:
    """Returns the wall seconds from the start of a command to its end, or to its first optimizer step."""
    repeats = {Size.TINY: 1, Size.QUICK: 3, Size.FULL: 9}[size]
    rows = [
        _row("--help", [_until_exit("--help") for _ in range(repeats)], HELP_BAR_S),
        _row("--dry-run", [_until_exit("train", str(DEMO_CONFIG), "--dry-run") for _ in range(repeats)], DRY_RUN_BAR_S),
    ]
    serial = ("runtime.kind=serial", "rollout.engine=transformers")
    runtimes: dict[str, tuple[str, ...]] = {"serial, transformers": serial, "Ray, vLLM": ()}
    if size is Size.TINY:
        runtimes = {"serial, transformers": (*serial, *_LESS_EVALUATION)}
    rows += [
        _row(f"first step: {name}", [_until_first_step(settings) for _ in range(1 if size is not Size.FULL else 3)])
        for name, settings in runtimes.items()
    ]
    return Report(
        bench="start",
        alternative="nothing (bars are seconds)",
        rows=tuple(rows),
        notes=("wall clock of a new process; first step: of the demo's configuration, its first evaluation included",),
    )


def _row(case: str, seconds: list[float], bar: float | None = None) -> BenchRow:
    median = statistics.median(seconds)
    met = None if bar is None else median < bar
    return BenchRow(
        case, median, None, "s", None, bar, met, equal=True, detail={"runs": len(seconds), "best": min(seconds)}
    )


def _until_exit(*arguments: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise TrainingError(f"saga-dist {arguments[0]} ended with code {done.returncode}", where="bench start")
    return seconds


def _until_first_step(settings: tuple[str, ...]) -> float:
    """Starts a training, waits for its first row of metrics and stops it; returns the seconds until that row.

    Args:
        settings: ``section.key=value`` texts over the demo's configuration.

    Raises:
        TrainingError: the training ends or the deadline passes before the first row.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics, log = Path(folder) / "run" / "metrics.jsonl", Path(folder) / "log"
        arguments = ("train", str(DEMO_CONFIG), *settings, "--run-dir", str(metrics.parent))
        started = time.perf_counter()
        with (
            file_to_write(log) as output,
            subprocess.Popen(_command(*arguments), stdout=output, stderr=output) as process,
        ):
            try:
                while not (metrics.is_file() and metrics.stat().st_size):
                    late = time.perf_counter() - started > DEADLINE_S
                    if late or process.poll() is not None:
                        what = f"no step within {DEADLINE_S:g} s" if late else f"exit code {process.returncode}"
                        tail = " ".join(log.read_text("utf-8", "replace").split())[-300:]
                        raise TrainingError(f"training did not start ({what}): {tail}", where="bench start")
                    time.sleep(0.02)
                seconds = time.perf_counter() - started
            finally:
                process.terminate()  # on SIGTERM a training writes a checkpoint and ends
                process.wait(DEADLINE_S)
    return seconds


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "saga_dist.cli.main", *arguments]
