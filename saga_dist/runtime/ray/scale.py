"""Scaling of a running job through small files in its run directory, without a connection to Ray.

    workers.json       run ──► command    status of the workers; a thread of the run updates it, removes it at the end
    scale-ROLE.json    command ──► run    requested number of workers of one role; the thread reads it every second

The files are written atomically and validated when they are read. Each role has a file of its own, so that requests
for two roles at the same time both hold; of two for one role the later one holds. A request contains the token of the
process that it was made for, so that a later process of the same run directory ignores it. A job can be scaled from
every machine that has access to the run directory (this machine, a shared file system, a pod of the cluster).

The clocks of two machines differ, so no time is compared with another machine's: a reader asks its own kernel for the
run's process, or, on another machine, waits until the status is written again.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, ValidationError

from saga_dist.config import Section
from saga_dist.errors import OutputError
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.processes import MachineId, ProcessId, identify, this_machine

if TYPE_CHECKING:
    from saga_dist.runtime.ray.adapter import WorkerStatus

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Time between two reads of the requests, seconds."""
REFRESH_S = 5.0
"""Longest time between two writes of ``workers.json``, seconds."""
SILENT_S = 30.0
"""Time without a new ``workers.json``, seconds, after which its process is taken to have died."""

_UP = ("idle", "busy")
_SETTLED = (*_UP, "released")
"""States that a worker keeps until there is work or a request."""


class WorkerEntry(Section):
    """Status of one slot of a pool, in ``workers.json``."""

    name: str = Field(description="name of the slot, <role>-<n>")
    state: str = Field(description="gone, starting, idle, busy, released or leaving")
    pid: int = Field(0, description="process id of the worker; 0 while no worker is up")
    host: str = Field("", description="host name of the worker's node; empty while no worker is up")
    since: float = Field(0.0, description="time at which the worker came up, seconds since 1970; 0 while none is up")


class PoolView(Section):
    """Status of one pool, in ``workers.json``."""

    target: int = Field(description="number of workers that the pool should have")
    fewest: int = Field(description="smallest number of workers that may be requested")
    most: int = Field(description="largest number of workers that may be requested")
    members: tuple[WorkerEntry, ...] = Field(description="all slots, the oldest first")

    @property
    def num_up(self) -> int:
        """Number of workers that are up and not leaving."""
        return sum(member.state in _UP for member in self.members)

    @property
    def settled(self) -> bool:
        """True when the pool has its target number of slots and every worker is up or released."""
        return len(self.members) == self.target and all(member.state in _SETTLED for member in self.members)


class RunView(Section):
    """Content of ``workers.json``; two writes of one run differ in ``written_at``."""

    run: str = Field(description="random token of the run's process")
    host: str = Field(description="host name of the run's process")
    pid: int = Field(description="process id of the run's process")
    started: int = Field(0, description="start of the run's process, clock ticks since boot; 0: not known")
    boot: str = Field("", description="id of the boot of the run's machine; empty: not known")
    namespace: str = Field("", description="name of the process namespace of the run; empty: not known")
    written_at: float = Field(description="time of writing by the run's clock, seconds since 1970")
    pools: dict[str, PoolView] = Field(description="pools by role: rollout, replay")

    @property
    def process(self) -> ProcessId:
        """Identity of the run's process."""
        return ProcessId(MachineId(self.host, self.boot, self.namespace), self.pid, self.started)


class Request(Section):
    """Content of ``scale-ROLE.json``."""

    run: str = Field(description="token of the process that the request is for")
    number: int = Field(description="requested number of workers")
    at_once: bool = Field(description="True: workers that leave return their leases; False: they finish them first")


class ScalablePool(Protocol):
    """Protocol of a pool whose number of workers can be changed."""

    def resize(self, number: int, *, at_once: bool = False) -> None:
        """Changes the target number of workers; does not wait for it."""

    @property
    def target(self) -> int:
        """Number of workers that the pool should have."""

    def status(self) -> tuple[WorkerStatus, ...]:
        """Returns the status of every slot, the oldest first."""


class ScaleController:
    """Thread of a run that applies the requests in ``scale-ROLE.json`` and writes ``workers.json``.

    Args:
        run_dir: an existing folder.
        pools: each pool with its smallest and largest number of workers, by role.
    """

    def __init__(self, run_dir: Path, pools: Mapping[str, tuple[ScalablePool, tuple[int, int]]]) -> None:
        self._requests = {role: request_file(run_dir, role) for role in pools}
        self._workers, self._pools = run_dir / "workers.json", pools
        self._run, self._process = secrets.token_hex(8), identify(os.getpid())
        self._applied: dict[str, Request] = {}
        self._written: RunView | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_until_closed, name="scale watch", daemon=True)

    def start(self) -> None:
        """Writes ``workers.json`` for the first time and starts the thread."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and removes all files."""
        self._stop.set()
        self._thread.join(SILENT_S)
        try:
            for file in (self._workers, *self._requests.values()):
                file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is left behind (%s)", self._workers, error.strerror)

    def poll(self) -> None:
        """Applies new requests and updates ``workers.json``; an error of the disk is logged and not raised."""
        try:
            for role in self._pools:
                self._apply_request(role)
            self._write()
        except (OSError, OutputError) as error:
            log.warning("%s: scaling does not work at present (%s)", self._workers.parent, error)

    def _run_until_closed(self) -> None:
        while not self._stop.wait(POLL_S):
            self.poll()

    def _apply_request(self, role: str) -> None:
        file, (pool, (fewest, most)) = self._requests[role], self._pools[role]
        if not file.exists():
            return
        try:
            request = Request.model_validate_json(file.read_bytes())
        except ValidationError:
            log.warning("%s is not a request; removed", file)
            file.unlink(missing_ok=True)
            return
        if request == self._applied.get(role) or request.run != self._run:
            return
        self._applied[role] = request
        if not max(1, fewest) <= request.number <= most:
            log.warning("request %s=%d is ignored; expected %d to %d", role, request.number, fewest, most)
        elif request.number != pool.target:
            log.info("scaling %s from %d to %d workers", role, pool.target, request.number)
            pool.resize(request.number, at_once=request.at_once)

    def _write(self) -> None:
        view = RunView(
            run=self._run,
            host=platform.node(),
            pid=os.getpid(),
            started=self._process.started if self._process else 0,
            boot=this_machine().boot,
            namespace=this_machine().namespace,
            written_at=time.time(),
            pools={role: _view(pool, *bounds) for role, (pool, bounds) in self._pools.items()},
        )
        old = self._written
        if old is None or old.pools != view.pools or view.written_at - old.written_at >= REFRESH_S:
            write_atomic(self._workers, view.model_dump_json(indent=2).encode())
            self._written = view


def _view(pool: ScalablePool, fewest: int, most: int) -> PoolView:
    members = []
    for worker in pool.status():
        pid, host = (worker.info.pid, worker.info.host) if worker.info else (0, "")
        since = worker.since if pid else 0.0
        members.append(WorkerEntry(name=worker.name, state=worker.state, pid=pid, host=host, since=since))
    return PoolView(target=pool.target, fewest=fewest, most=most, members=tuple(members))


def request_file(run_dir: Path, role: str) -> Path:
    """Returns the path of the request for one role."""
    return run_dir / f"scale-{role}.json"
