"""The side of scaling that the command uses: reads the status of a run's workers and requests other numbers of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from saga_dist.errors import ConfigError, DeadlineExceeded
from saga_dist.runtime.ray.scale import POLL_S, SILENT_S, Request, RunView, request_file
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.processes import is_alive
from saga_dist.utils.waiting import announced


class RunObserver:
    """Reads ``workers.json`` of a run again and again and finds out whether its process lives.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._last: tuple[str, float] | None = None
        self._changed_at = time.monotonic()
        self.is_confirmed = False
        """True once the process is known to live: by this machine's kernel, or because the status was written again."""

    def read(self) -> RunView:
        """Returns the status of the workers, as the run last wrote it.

        Raises:
            ConfigError: the folder is no run directory, no run is in progress there, its runtime is serial, or its
                process has died.
        """
        view = _read(self._run_dir)
        alive, stamp, now = is_alive(view.process), (view.run, view.written_at), time.monotonic()
        if stamp != self._last:
            self.is_confirmed, self._last, self._changed_at = self._last is not None, stamp, now
        self.is_confirmed = self.is_confirmed or alive is True
        silent_s = now - self._changed_at
        if alive is False or (alive is None and silent_s > SILENT_S):
            reason = "is gone" if alive is False else f"has not written its status for {silent_s:.0f} s"
            raise ConfigError(
                f"the run has died: process {view.pid} on {view.host} {reason}",
                where=str(self._run_dir),
                fix="the command that started it resumes it",
            )
        return view


def read_workers(run_dir: Path) -> RunView:
    """Returns the number and state of the workers of a run that is in progress; waits until that is certain.

    On the machine of the run that takes no time, on another one until the run writes its status the next time.

    Raises the errors of ``RunObserver.read``.

    Args:
        run_dir: the run directory.
    """
    observer = RunObserver(run_dir)
    with announced("the run's next sign on its status file", lambda: str(run_dir)):
        while True:
            view = observer.read()
            if observer.is_confirmed:
                return view
            time.sleep(POLL_S / 4)


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
    for role, number in targets.items():
        request, file = Request(run=view.run, number=number, at_once=at_once), request_file(run_dir, role)
        write_atomic(file, request.model_dump_json(indent=2).encode())
    return view


def wait_for(run_dir: Path, targets: Mapping[str, int], *, deadline_s: float) -> RunView:
    """Waits until the run has the requested numbers of workers; returns the status of its workers.

    Args:
        run_dir: the run directory.
        targets: requested number of workers by role.
        deadline_s: longest time to wait, seconds.

    Raises:
        DeadlineExceeded: the run does not have them after ``deadline_s`` seconds.
        ConfigError: the run ended, or another request for one of the roles replaced this one.
    """
    deadline, observer = time.monotonic() + deadline_s, RunObserver(run_dir)
    while True:
        view = observer.read()
        open_roles = [
            role
            for role, number in targets.items()
            if view.pools[role].target != number or not view.pools[role].settled
        ]
        if not open_roles:
            return view
        for role in open_roles:
            _require_own_request(run_dir, role, targets[role])
        if time.monotonic() >= deadline:
            pool = view.pools[open_roles[0]]
            raise DeadlineExceeded(
                f"{pool.num_up} of {targets[open_roles[0]]} run after {deadline_s:g} s",
                where=open_roles[0],
                fix="the run goes on trying; `saga-dist scale RUN` shows how far it is",
            )
        time.sleep(POLL_S / 4)


def _require_own_request(run_dir: Path, role: str, number: int) -> None:
    """Checks that the request for a role is still this one.

    Raises:
        ConfigError: somebody has requested another number since.
    """
    try:
        request = Request.model_validate_json(request_file(run_dir, role).read_bytes())
    except (OSError, ValidationError):
        return  # the run has ended, which the next read of its status finds out
    if request.number != number:
        raise ConfigError(
            f"a later request, {role}={request.number}, has replaced this one",
            where=f"{role}={number}",
            fix="`saga-dist scale RUN` shows the workers",
        )


def _read(run_dir: Path) -> RunView:
    """Returns the content of ``workers.json``.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    file, saved = run_dir / "workers.json", run_dir / "config.json"
    if not saved.is_file():
        raise ConfigError("holds no config.json", where=str(run_dir), expected="the directory of a run")
    try:
        return RunView.model_validate_json(file.read_bytes())
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
