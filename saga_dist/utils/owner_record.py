"""The record of a directory's owner, which ``directory_owner`` keeps in a file there."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

CONTENT_BYTES = 2048
"""Size of the file, always the same, so that one write replaces it whole."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Content of the owner's file."""

    token: str
    """Random text of this claim."""
    machine: str
    """Boot id of the kernel, which containers of a host share, as they share its locks; else the name of the host."""
    host: str
    """Name of the host."""
    pid: int
    """Process id on that host."""
    started: str
    """Time of the claim in UTC, for people."""
    command: str
    """Command of the process."""
    beat: int = 0
    """Counter of the heartbeat."""

    @classmethod
    def this_process(cls) -> Owner:
        """Returns a new claim of this process."""
        return cls(
            token=uuid.uuid4().hex,
            machine=_machine(),
            host=platform.node()[:100],
            pid=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])[:100],
        )

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Returns the owner in the content of its file; None when there is none or it is only partly written."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def content(self, beat: int) -> bytes:
        """Returns the content of the file at a count of the heartbeat."""
        return json.dumps({**asdict(self), "beat": beat}).ljust(CONTENT_BYTES).encode()


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return platform.node()
