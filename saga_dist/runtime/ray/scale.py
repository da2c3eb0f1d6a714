"""Scaling a running job from outside: two small files in the run directory, no connection to Ray needed.

    workers.json   the run ──► you    who works, kept up to date by a thread of the run; gone when the run has ended
    scale.json     you ──► the run    how many shall work, looked at every second

Both are written atomically and read strictly. A request carries the token of the run it was made for, so that one left
by an earlier process of the same run directory means nothing to the next. Wherever the run directory can be seen (this
machine, a shared file system, a pod of the cluster) the job can be scaled.
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
from saga_dist.errors import ConfigError, DeadlineExceeded
from saga_dist.utils.atomic_io import write_atomic

if TYPE_CHECKING:
    from saga_dist.runtime.ray.adapter import WorkerStatus

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at ``scale.json``."""
REFRESH_S = 5.0
"""``workers.json`` is written at least this often."""
SILENT_S = 30.0
"""A ``workers.json`` that is older was left behind by a process that died."""

_UP = ("idle", "busy")
_CALM = (*_UP, "released")
"""States in which nothing is about to change."""


class WorkerEntry(Section):
    """One place of a pool."""

    name: str
    state: str
    """See ``WorkerStatus``."""
    pid: int = 0
    host: str = ""
    since: float = Field(0.0, description="when it came up, seconds since 1970")


class PoolView(Section):
    """One pool as the run last wrote it down."""

    target: int
    fewest: int
    most: int
    members: tuple[WorkerEntry, ...]

    @property
    def num_up(self) -> int:
        """Workers that are up and stay."""
        return sum(member.state in _UP for member in self.members)

    @property
    def settled(self) -> bool:
        """True when everybody who was asked for is up, or released for want of work, and nobody else is there."""
        return len(self.members) == self.target and all(member.state in _CALM for member in self.members)


class RunView(Section):
    """``workers.json``."""

    run: str
    """Token of the process."""
    host: str
    pid: int
    written_at: float
    """Seconds since 1970."""
    pools: dict[str, PoolView]


class Request(Section):
    """``scale.json``."""

    run: str
    targets: dict[str, int]
    at_once: bool


class ScalablePool(Protocol):
    """What the watch needs of a pool."""

    def resize(self, number: int, *, at_once: bool = False) -> None: ...

    @property
    def target(self) -> int: ...

    def status(self) -> tuple[WorkerStatus, ...]: ...


class ScaleController:
    """The run's side: a thread that obeys ``scale.json`` and keeps ``workers.json``.

    Args:
        run_dir: an existing folder.
        pools: each with the fewest and the most workers it may have, by role.
    """

    def __init__(self, run_dir: Path, pools: Mapping[str, tuple[ScalablePool, tuple[int, int]]]) -> None:
        self._request, self._workers, self._pools = run_dir / "scale.json", run_dir / "workers.json", pools
        self._run = secrets.token_hex(8)
        self._obeyed: Request | None = None
        self._written: RunView | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="scale watch", daemon=True)

    def start(self) -> None:
        """Writes ``workers.json`` for the first time and starts the thread."""
        self.look()
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

    def look(self) -> None:
        """One look at the request, one at the workers. A full disk or a broken file is not worth a run."""
        try:
            self._obey()
            self._write()
        except OSError as error:
            log.warning("%s: scaling does not work just now (%s)", self._workers.parent, error.strerror)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()

    def _obey(self) -> None:
        if not self._request.exists():
            return
        try:
            request = Request.model_validate_json(self._request.read_bytes())
        except ValidationError:
            log.warning("%s is not a request; removed", self._request)
            self._request.unlink(missing_ok=True)
            return
        if request == self._obeyed or request.run != self._run:
            return
        self._obeyed = request
        for role, number in request.targets.items():
            pool, (fewest, most) = self._pools.get(role, (None, (0, 0)))
            if pool is None or not max(1, fewest) <= number <= most:
                log.warning("asked for %s=%d; not obeyed, expected %d to %d", role, number, fewest, most)
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


# ---------------------------------------------------------------------- the other side


def read_workers(run_dir: Path) -> RunView:
    """Returns who works in a run.

    Raises:
        ConfigError: nothing runs there, or nothing that could be scaled.
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
            expected='a run that trains just now with runtime.kind = "ray"',
            fix="start it; a finished or serial run has none",
        ) from None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not what a run writes"
        raise ConfigError(f"cannot be read ({reason})", where=str(file)) from error
    silent_s = time.time() - view.written_at
    if silent_s > SILENT_S:
        raise ConfigError(
            f"the run is not there any more: process {view.pid} on {view.host} was last heard {silent_s:.0f} s ago",
            where=str(run_dir),
            fix="the command that started it resumes it",
        )
    return view


def request_scale(run_dir: Path, targets: Mapping[str, int], *, at_once: bool = False) -> RunView:
    """Asks a run for other numbers of workers; returns who works just now.

    Args:
        run_dir: of the run.
        targets: number of workers by role.
        at_once: workers that leave return their groups instead of finishing them.

    Raises:
        ConfigError: no such role, a number out of range, or nothing runs there.
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
    try:
        write_atomic(run_dir / "scale.json", request.model_dump_json(indent=2).encode())
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", where=str(run_dir / "scale.json")) from error
    return view


def wait_for(run_dir: Path, targets: Mapping[str, int], *, deadline_s: float) -> RunView:
    """Returns who works as soon as the run has as many workers as were asked for.

    Raises:
        DeadlineExceeded: it has not, after ``deadline_s`` seconds.
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
        time.sleep(LOOK_S / 4)
