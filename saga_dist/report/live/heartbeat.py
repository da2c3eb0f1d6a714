"""Finds out whether a process writes to a run directory, from the file of the directory's owner.

The owner increases a counter in that file every few seconds (``utils/directory_owner.py``). The clocks of two hosts
differ, so no time is compared: a counter that was seen to change is a process that lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from saga_dist.utils.directory_owner import OWNER_NAME, WATCH_S
from saga_dist.utils.owner_record import Owner
from saga_dist.utils.processes import identify, this_machine


class Pulse(StrEnum):
    """Knowledge about the process that writes to a run directory."""

    NONE = "none"
    """No process does."""
    UNKNOWN = "unknown"
    """A process did, and its heartbeat was not watched for long enough yet."""
    ALIVE = "alive"
    """The process lives."""
    SILENT = "silent"
    """The process has not written its heartbeat for ``WATCH_S`` seconds."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process that writes to a run directory, as far as it is known."""

    pulse: Pulse
    """Knowledge about the process."""
    owner: Owner | None = None
    """The process; None for ``Pulse.NONE``."""
    unchanged_s: float = 0.0
    """Seconds for which this reader has seen no new heartbeat."""


class HeartbeatObserver:
    """Reads the heartbeat of a run directory again and again.

    Args:
        run_dir: the run directory.
        clock: returns seconds; monotonic.
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = run_dir / OWNER_NAME, clock
        self._last: Owner | None = None
        self._changed_at = clock()
        self._has_beaten = False

    def read(self) -> Heartbeat:
        """Returns the heartbeat. Opens the file anew each time: only then does NFS ask its server."""
        try:
            owner = Owner.parse(self._file.read_bytes())
        except OSError:
            self._last, self._has_beaten = None, False
            return Heartbeat(Pulse.NONE)
        now = self._clock()
        if owner is not None and owner != self._last:
            self._has_beaten = self._last is not None
            self._last, self._changed_at = owner, now
        unchanged_s = now - self._changed_at
        if unchanged_s > WATCH_S:
            pulse = Pulse.SILENT
        elif self._has_beaten or (self._last is not None and _is_here(self._last)):
            pulse = Pulse.ALIVE
        else:
            pulse = Pulse.UNKNOWN
        return Heartbeat(pulse, self._last, unchanged_s)


def _is_here(owner: Owner) -> bool:
    """Returns True when the owner is a living process of this machine, which needs no watching."""
    return owner.machine == this_machine().boot and identify(owner.pid) is not None
