"""Functions of the rows of clusters: environments, run directories and calls without Ray."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bad_inputs.row import Workspace

from saga_dist.runtime.leftovers import NAME, Leftovers
from saga_dist.runtime.ray.address import check_token, configured_address
from saga_dist.runtime.ray.resources import ResourceRequest, shortage_text
from saga_dist.runtime.ray.scale import ScaleController, request_file
from saga_dist.utils.processes import this_machine

Prepare = Callable[[Workspace], Any]
VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
HELD: list[socket.socket] = []
"""Sockets that are bound and do not listen."""


def environment(**values: str) -> Prepare:
    """Sets Ray's variables; those not named are unset, and the home folder has no token."""

    def prepare(workspace: Workspace) -> None:
        for name in VARIABLES:
            workspace.patch.delenv(name, raising=False)
        workspace.patch.setenv("HOME", str(workspace.folder))
        for name, value in values.items():
            workspace.patch.setenv(name, value.format(folder=workspace.folder))

    return prepare


def join(workspace: Workspace) -> None:
    """Checks the address of the environment, as a run does before it starts Ray."""
    address = configured_address("")
    assert address is not None
    check_token()
    address.check()


def join_refused(workspace: Workspace) -> None:
    """Ends as a run does when Ray finds no cluster."""
    address = configured_address("")
    assert address is not None
    raise address.refused(ConnectionError("Could not find any running Ray instance. Please specify the one"))


def closed_port() -> int:
    """Returns a port on which nobody listens, nor will: a bound socket holds it until the tests end."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    HELD.append(held)
    return int(held.getsockname()[1])


def unconnected(workspace: Workspace) -> None:
    """Makes Ray seem unconnected, which it is not when another test has started it."""
    import ray

    environment()(workspace)
    workspace.patch.setattr(ray, "is_initialized", lambda: False)


class NoPool:
    """A pool of one worker that nobody resizes."""

    target = 1

    def resize(self, number: int, *, at_once: bool = False) -> None:
        """Fails: a bad order must not arrive here."""
        raise AssertionError(f"resized to {number}")

    def status(self) -> tuple[()]:
        """Returns no worker."""
        return ()


def running(workspace: Workspace) -> ScaleController:
    """Makes ``run`` the directory of a run in progress, in this process, with one rollout worker of at most 4."""
    run = workspace.folder / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    controller = ScaleController(run, {"rollout": (NoPool(), (1, 4))})
    controller.poll()
    return controller


def status_with(**values: object) -> Prepare:
    """Replaces values of the status of a run in progress."""

    def prepare(workspace: Workspace) -> None:
        running(workspace)
        file = workspace.folder / "run" / "workers.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return prepare


def file_of_run(name: str, content: bytes) -> Prepare:
    """Writes a file into ``run``, the directory of a run that is not in progress."""

    def prepare(workspace: Workspace) -> None:
        run = workspace.folder / "run"
        run.mkdir()
        (run / "config.json").write_text("{}")
        (run / name).write_bytes(content)

    return prepare


def poll_with(content: bytes) -> Callable[[Workspace], str]:
    """Returns an act by which a run in progress reads a damaged order; it returns what is left of the order."""

    def act(workspace: Workspace) -> str:
        controller = running(workspace)
        file = request_file(workspace.folder / "run", "rollout")
        file.write_bytes(content)
        controller.poll()
        return f"left: {file.exists()}"

    return act


def forged_order(workspace: Workspace) -> None:
    """Writes an order that the command would refuse, with the run's own token."""
    controller = running(workspace)
    token = json.loads((workspace.folder / "run" / "workers.json").read_text())["run"]
    request = {"run": token, "number": 99, "at_once": False}
    request_file(workspace.folder / "run", "rollout").write_text(json.dumps(request))
    controller.poll()


def shortage(
    *waiting: ResourceRequest, total: dict[str, float], free: dict[str, float], node: dict[str, float] | None = None
) -> Callable[[Workspace], str]:
    """Returns an act that names what actors wait for, on a cluster of one node unless ``node`` is one of several."""
    return lambda workspace: shortage_text(waiting, total=total, free=free, nodes=[node or total])


def sweep(content: bytes) -> Callable[[Workspace], list[str]]:
    """Returns an act that starts a run whose directory has this record of an earlier process."""

    def act(workspace: Workspace) -> list[str]:
        (workspace.folder / "mine").mkdir()
        (workspace.folder / NAME).write_bytes(content)
        Leftovers(workspace.folder).sweep()
        return sorted(path.name for path in workspace.folder.iterdir())

    return act


def sweep_foreign(folder: str) -> Callable[[Workspace], str]:
    """Returns an act that reads a record by which a dead process claims a folder that was never a temporary one."""

    def act(workspace: Workspace) -> str:
        (workspace.folder / "mine").mkdir()
        dead = {"machine": asdict(this_machine()), "pid": os.getpid(), "started": 1}
        row = {"driver": dead, "process": dead, "children": [], "files": [], "folder": folder.format(workspace.folder)}
        (workspace.folder / NAME).write_text(json.dumps([row]))
        Leftovers(workspace.folder).sweep()
        return f"kept: {(workspace.folder / 'mine').is_dir()}"

    return act
