"""Live view of a run, from the files of its directory alone, so that it works on every host that sees the folder.

rows       metrics.jsonl while it grows
heartbeat  whether a process writes to the directory
run        state of the run: steps, workers, last group, end
view       the state as text for a terminal
"""

from saga_dist.report.live.run import LiveRun, RunWatcher

__all__ = ["LiveRun", "RunWatcher"]
