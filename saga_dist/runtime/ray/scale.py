"""Scaling of a running job through two small files in its run directory, without a connection to Ray.

    workers.json   run ──► command    status of the workers; a thread of the run updates it and removes it at the end
    scale.json     command ──► run    requested numbers of workers; the thread reads it every second

Both files are written atomically and validated when they are read. A request contains the token of the process that it
was made for, so that a later process of the same run directory ignores it. A job can be scaled from every machine that
has access to the run directory (this machine, a shared file system, a pod of the cluster).
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
from saga_dist.errors import ConfigError, DeadlineExceeded, OutputError
from saga_dist.utils.atomic_io import write_atomic

if TYPE_CHECKING:
    from saga_dist.runtime.ray.adapter import WorkerStatus

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Time between two reads of ``scale.json``, seconds."""
REFRESH_S = 5.0
"""Longest time between two writes of ``workers.json``, seconds."""
SILENT_S = 30.0
"""Age, seconds, from which ``workers.json`` is taken to be left over from a process that died."""

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
    """Content of ``workers.json``."""

    run: str = Field(description="random token of the run's process")
    host: str = Field(description="host name of the run's process")
    pid: int = Field(description="process id of the run's process")
    written_at: float = Field(description="time of writing, seconds since 1970")
    pools: dict[str, PoolView] = Field(description="pools by role: rollout, replay")


class Request(Section):
    """Content of ``scale.json``."""

    run: str = Field(description="token of the process that the request is for")
    targets: dict[str, int] = Field(description="requested number of workers by role")
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
    """Thread of a run that applies the requests in ``scale.json`` and writes ``workers.json``.

    Args:
        run_dir: an existing folder.
        pools: each pool with its smallest and largest number of workers, by role.
    """

    def __init__(self, run_dir: Path, pools: Mapping[str, tuple[ScalablePool, tuple[int, int]]]) -> None:
        self._request, self._workers, self._pools = run_dir / "scale.json", run_dir / "workers.json", pools
        self._run = secrets.token_hex(8)
        self._applied: Request | None = None
        self._written: RunView | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_until_closed, name="scale watch", daemon=True)

    def start(self) -> None:
        """Writes ``workers.json`` for the first time and starts the thread."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and removes both files."""
        self._stop.set()
        self._thread.join(SILENT_S)
        try:
            self._workers.unlink(missing_ok=True)
            self._request.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s is left behind (%s)", self._workers, error.strerror)

    def poll(self) -> None:
        """Applies a new request and updates ``workers.json``; an error of the disk is logged and not raised."""
        try:
            self._apply_request()
            self._write()
        except (OSError, OutputError) as error:
            log.warning("%s: scaling does not work at present (%s)", self._workers.parent, error)

    def _run_until_closed(self) -> None:
        while not self._stop.wait(POLL_S):
            self.poll()

    def _apply_request(self) -> None:
        if not self._request.exists():
            return
        try:
            request = Request.model_validate_json(self._request.read_bytes())
        except ValidationError:
            log.warning("%s is not a request; removed", self._request)
            self._request.unlink(missing_ok=True)
            return
        if request == self._applied or request.run != self._run:
            return
        self._applied = request
        for role, number in request.targets.items():
            pool, (fewest, most) = self._pools.get(role, (None, (0, 0)))
            if pool is None or not max(1, fewest) <= number <= most:
                log.warning("request %s=%d is ignored; expected %d to %d", role, number, fewest, most)
            elif number != pool.target:
                log.info("scaling %s from %d to %d workers", role, pool.target, number)
                pool.resize(number, at_once=request.at_once)

    def _write(self) -> None:
        view = RunView(
            run=self._run,
            host=platform.node(),
            pid=os.getpid(),
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


# ---------------------------------------------------------------------- functions of the command


def read_workers(run_dir: Path) -> RunView:
    """Returns the number and state of a run's rollout and replay workers, as its driver last wrote them.

    Args:
        run_dir: the run directory.

    Raises:
        ConfigError: the folder is no run directory, no run is in progress there, or its runtime is serial.
    """
    file, saved = run_dir / "workers.json", run_dir / "config.json"
    if not saved.is_file():
        raise ConfigError("holds no config.json", where=str(run_dir), expected="the directory of a run")
    try:
        view = RunView.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            "no workers to scale here",
            where=str(run_dir),
            expected='a run in progress with runtime.kind = "ray"',
            fix="start it; a finished or serial run has none",
        ) from None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not what a run writes"
        raise ConfigError(f"cannot be read ({reason})", where=str(file)) from error
    silent_s = time.time() - view.written_at
    if silent_s > SILENT_S:
        raise ConfigError(
            f"the run has died: process {view.pid} on {view.host} last wrote its status {silent_s:.0f} s ago",
            where=str(run_dir),
            fix="the command that started it resumes it",
        )
    return view


def request_scale(run_dir: Path, targets: Mapping[str, int], *, at_once: bool = False) -> RunView:
    """Requests other numbers of workers from a run; returns the present status of its workers.

    Args:
        run_dir: the run directory.
        targets: requested number of workers by role.
        at_once: True: workers that leave return their groups; False: they finish them first.

    Raises:
        ConfigError: there is no such role, a number is out of range, or no run is in progress.
    """
    view = read_workers(run_dir)
    for role, number in targets.items():
        if role not in view.pools:
            roles = " or ".join(view.pools) or "none: this run trains without an MLLM"
            what = "the learner replays itself" if role == "replay" and "rollout" in view.pools else "no such workers"
            fix = "set replay.workers before the start" if role == "replay" else ""
            raise ConfigError(what, where=f"{role}={number}", expected=roles, fix=fix)
        pool = view.pools[role]
        if not max(1, pool.fewest) <= number <= pool.most:
            raise ConfigError(
                "out of range",
                where=f"{role}={number}",
                expected=f"{max(1, pool.fewest)} to {pool.most}",
                fix=f"the range is {role}.min_workers to {role}.max_workers of the configuration",
            )
    request = Request(run=view.run, targets=dict(targets), at_once=at_once)
    write_atomic(run_dir / "scale.json", request.model_dump_json(indent=2).encode())
    return view


def wait_for(run_dir: Path, targets: Mapping[str, int], *, deadline_s: float) -> RunView:
    """Waits until the run has the requested numbers of workers; returns the status of its workers.

    Args:
        run_dir: the run directory.
        targets: requested number of workers by role.
        deadline_s: longest time to wait, seconds.

    Raises:
        DeadlineExceeded: the run does not have them after ``deadline_s`` seconds.
        ConfigError: the run ended.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        view = read_workers(run_dir)
        open_roles = [
            role
            for role, number in targets.items()
            if view.pools[role].target != number or not view.pools[role].settled
        ]
        if not open_roles:
            return view
        if time.monotonic() >= deadline:
            pool = view.pools[open_roles[0]]
            raise DeadlineExceeded(
                f"{pool.num_up} of {targets[open_roles[0]]} run after {deadline_s:g} s",
                where=open_roles[0],
                fix="the run goes on trying; `saga-dist scale RUN` shows how far it is",
            )
        time.sleep(POLL_S / 4)
