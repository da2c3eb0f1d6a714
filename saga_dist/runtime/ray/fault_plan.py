"""Faults that tests plan for fake workers, as files, because a fault may kill the process in which it happens."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saga_dist.errors import EngineError, TokenError
from saga_dist.utils.output_files import write_file

Kind = Literal["kill", "stop", "raise", "bug", "user_error", "short", "garbage", "twice", "slow", "long"]
"""Kind of a fault.

``kill`` and ``stop`` send SIGKILL and SIGSTOP to the own process; ``raise`` raises an EngineError, ``bug`` a
ZeroDivisionError, ``user_error`` a TokenError; ``slow`` sleeps; ``short`` leaves the group out of the results,
``garbage`` replaces its pair id, ``twice`` returns it twice; a ``long`` group takes longer than others, which a worker
that is fed finishes meanwhile.
"""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Planned faults, as files of a folder that is read for every pair, so that a fault can be planned at any time."""

    folder: str = ""
    """Path of the folder; empty for no faults."""
    group_s: float = 0.0
    """Time that a rollout worker takes for each group, seconds."""

    def plan(self, name: str, kind: Kind, *, times: int = 1, seconds: float = 0.0) -> None:
        """Plans a fault.

        Args:
            name: point at which the fault is triggered: a pair id for its rollout, ``start`` for the construction of a
                rollout worker, ``replay-<pair id>`` for a replay, ``encode-<step>`` for the learner's encode.
            kind: kind of the fault.
            times: number of times that it is triggered, over all processes.
            seconds: duration of a fault of kind ``slow`` or ``long``.
        """
        write_file(Path(self.folder) / f"{name}.json", json.dumps([kind, times, seconds]))

    def num_triggered(self, name: str) -> int:
        """Returns how often the fault at ``name`` was triggered."""
        return len(list(Path(self.folder).glob(f"{name}.triggered.*")))

    def triggered_at(self, name: str) -> list[float]:
        """Returns the times at which the fault at ``name`` was triggered, seconds since 1970."""
        return sorted(file.stat().st_mtime for file in Path(self.folder).glob(f"{name}.triggered.*"))

    def clear(self) -> None:
        """Deletes all plans and counts."""
        for file in Path(self.folder).iterdir():
            file.unlink()

    def trigger(self, name: str) -> str:
        """Triggers the fault at ``name`` if one is planned; returns its kind for the caller to apply, else empty."""
        plan = Path(self.folder) / f"{name}.json"
        if not self.folder or not plan.exists():
            return ""
        kind, times, seconds = json.loads(plan.read_text("utf-8"))
        if not self._claim(name, times):
            return ""
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise EngineError("CUDA out of memory (scripted)", where="engine")
            case "bug":
                raise ZeroDivisionError("scripted bug")
            case "user_error":
                raise TokenError("width 7", where=f"pair {name}", expected="width 6")
            case "slow":
                time.sleep(seconds)
        return kind

    def seconds_of(self, pair_id: str) -> float:
        """Returns the time that the group of a pair takes, seconds."""
        plan = Path(self.folder) / f"{pair_id}.json"
        kind, _, seconds = json.loads(plan.read_text("utf-8")) if self.folder and plan.exists() else ("", 0, 0.0)
        return seconds if kind == "long" else self.group_s

    def _claim(self, name: str, times: int) -> bool:
        """Returns True for the first ``times`` calls over all processes, because a file is created atomically."""
        for count in range(times):
            try:
                (Path(self.folder) / f"{name}.triggered.{count}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False
