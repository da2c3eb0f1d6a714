"""Seeded faults on real Ray: kill, stop, lie, stall, in every role, lose nodes and calls; every pair is accounted for.

    python tests/runtime/ray/chaos.py --runs 200 --out chaos.jsonl

Scripted workers (``cluster/scripted.py``) stand for the models; coordinator, pools, actors, object store, checkpoints
and ledger are the real ones. A run passes when it ends by itself with its number of steps, when the ledger has every
pair of every step exactly once, and, where nothing was set aside and rollouts were synchronous, when the weights are
those of a run that nobody disturbed, to the bit. A run that does not end in time is a hang: its stream then dies with a
traceback of every thread. Which calls get lost is Ray's own draw; all other faults follow from the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STREAM = Path(__file__).with_name("chaos_stream.py")
NUM_STREAMS = 4


class Tally:
    """What all runs came to; streams report from threads."""

    def __init__(self, out: Path | None) -> None:
        self._out, self._lock = out, threading.Lock()
        self.outcomes: list[dict[str, Any]] = []

    def add(self, outcome: dict[str, Any]) -> None:
        """Counts a run and says what happened in it."""
        kinds = " ".join(fault["kind"] for fault in outcome["faults"])
        with self._lock:
            self.outcomes.append(outcome)
            if self._out:
                with self._out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(outcome) + "\n")
            say(f"run {outcome['seed']}: {outcome['struck']} strikes ({kinds}), {outcome['wall_s']:.0f} s")

    def summary(self) -> list[str]:
        """Returns the lines that the drill ends with."""
        kinds, fates = Counter[str](), Counter[str]()
        for outcome in self.outcomes:
            kinds.update(fault["kind"] for fault in outcome["faults"])
            fates.update(outcome["fates"])
        struck = sum(outcome["struck"] for outcome in self.outcomes)
        equal = [outcome["weights_equal"] for outcome in self.outcomes if outcome["weights_equal"] is not None]
        noticed = sorted(delay for outcome in self.outcomes for delay in outcome["hangs_noticed_s"])
        lines = [
            f"{len(self.outcomes)} runs, 0 hangs, {struck} strikes; planned: {dict(sorted(kinds.items()))}",
            f"pairs: {dict(fates)}; 0 lost, 0 counted twice",
            f"weights equal to the quiet run in {sum(equal)} of {len(equal)} runs in which they must be",
        ]
        if noticed:
            median = noticed[len(noticed) // 2]
            lines.append(
                f"{len(noticed)} stopped processes noticed after {median:.1f} s in the median, {noticed[-1]:.1f} s at"
                " most (two heartbeats: 6.0 s)"
            )
        return lines


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_stream(number: int, seeds: list[int], tally: Tally) -> int:
    """Runs the seeds of one stream in a process of its own; returns its exit status."""
    command = [sys.executable, str(STREAM), str(number), *map(str, seeds)]
    # A thread that is late when a stream ends must not join, or start, another Ray.
    env = os.environ | {"RAY_ENABLE_AUTO_CONNECT": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):  # Ray has things to say too
                    tally.add(json.loads(line))
        finally:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count on")
    parser.add_argument("--stream", type=int, choices=range(NUM_STREAMS), help="only this one of every four runs")
    parser.add_argument("--jobs", type=int, default=2, help="streams at a time")
    parser.add_argument("--out", type=Path, help="one JSON line a run")
    options = parser.parse_args()
    tally, statuses = Tally(options.out), dict[int, int]()
    seeds = range(options.seed, options.seed + options.runs)
    streams = range(NUM_STREAMS) if options.stream is None else [options.stream]

    def work(number: int) -> None:
        statuses[number] = run_stream(number, [seed for seed in seeds if seed % NUM_STREAMS == number], tally)

    with ThreadPoolExecutor(options.jobs) as threads:
        list(threads.map(work, streams))
    expected = sum(seed % NUM_STREAMS in streams for seed in seeds)
    failed = {number: status for number, status in statuses.items() if status}
    if failed or len(tally.outcomes) != expected:
        sys.exit(f"{len(tally.outcomes)} of {expected} runs passed; exit statuses of the streams that failed: {failed}")
    for line in tally.summary():
        say(line)


if __name__ == "__main__":
    main()
