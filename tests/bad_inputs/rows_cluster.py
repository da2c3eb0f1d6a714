"""Clusters, addresses and orders that cannot be used, as far as that is known without Ray."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.row import BadInput, Workspace

from saga_dist.runtime.leftovers import NAME, Leftovers
from saga_dist.runtime.ray.address import check_token, configured_address
from saga_dist.runtime.ray.resources import ResourceRequest, missing_resources, shortage_text
from saga_dist.runtime.ray.scale import ScaleController, request_file
from saga_dist.utils.processes import identify, this_machine

Prepare = Callable[[Workspace], Any]
VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


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


def address_row(name: str, value: str, *says: str) -> BadInput:
    """Returns a row of an address in RAY_ADDRESS."""
    says = ("RAY_ADDRESS = ", *says)
    return BadInput(name, "address", join, says, prepare=environment(RAY_ADDRESS=value))


def closed_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


ADDRESSES = [
    address_row(
        "RAY_ADDRESS is the dashboard's address, as job submitters export it",
        "http://127.0.0.1:8265",
        "the address of Ray's dashboard",
        '"host:port" of the Ray head itself',
        "unset RAY_ADDRESS",
    ),
    address_row("RAY_ADDRESS is a dashboard behind TLS", "https://ray.example.org", "the address of Ray's dashboard"),
    address_row("RAY_ADDRESS has no port", "head", 'not an address; expected "host:port"'),
    address_row("RAY_ADDRESS has no host", ":6379", "not an address"),
    address_row("RAY_ADDRESS has a port that no machine has", "127.0.0.1:70000", "not an address"),
    address_row("RAY_ADDRESS has another scheme", "grpc://127.0.0.1:6379", "not an address"),
    address_row("RAY_ADDRESS names a host that cannot exist", f"{'h' * 70}.org:6379", "check the spelling of the host"),
    address_row(
        "RAY_ADDRESS names a port on which nobody listens",
        f"127.0.0.1:{closed_port()}",
        "no connection to this address (Connection refused)",
        "check that a Ray head runs there",
    ),
]

AUTHENTICATION = [
    BadInput(
        "RAY_ADDRESS is auto and no Ray runs here",
        "authentication and discovery",
        join_refused,
        ("RAY_ADDRESS = 'auto': no Ray runs on this machine", "ray start --head", "unset RAY_ADDRESS"),
        prepare=environment(RAY_ADDRESS="auto"),
    ),
    BadInput(
        "RAY_AUTH_MODE is a word that Ray takes for disabled",
        "authentication and discovery",
        join,
        ("RAY_AUTH_MODE = 'tokens'", "expected disabled or token"),
        prepare=environment(RAY_ADDRESS="127.0.0.1:1", RAY_AUTH_MODE="tokens"),
    ),
    BadInput(
        "RAY_AUTH_TOKEN_PATH names no file",
        "authentication and discovery",
        join,
        ("RAY_AUTH_TOKEN_PATH = ", "/none': cannot be read (No such file or directory)"),
        prepare=environment(RAY_ADDRESS="127.0.0.1:1", RAY_AUTH_TOKEN_PATH="{folder}/none"),
    ),
    BadInput(
        "RAY_AUTH_TOKEN_PATH names a folder",
        "authentication and discovery",
        join,
        ("cannot be read (Is a directory)",),
        prepare=environment(RAY_ADDRESS="127.0.0.1:1", RAY_AUTH_TOKEN_PATH="{folder}"),
    ),
    BadInput(
        "RAY_AUTH_TOKEN_PATH names an empty file",
        "authentication and discovery",
        join,
        ("/dev/null': empty; expected a file with Ray's token",),
        prepare=environment(RAY_ADDRESS="127.0.0.1:1", RAY_AUTH_TOKEN_PATH="/dev/null"),
    ),
    BadInput(
        "runtime.address is the dashboard's address, and the training would start",
        "authentication and discovery",
        "train {folder}/run.toml runtime.kind=ray runtime.address=http://head:8265 --run-dir {folder}/run",
        ("runtime.address = 'http://head:8265'", 'set runtime.address = ""'),
        prepare=lambda workspace: (unconnected(workspace), workspace.write_config()),
    ),
]


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


def order(name: str, arguments: str, *says: str, prepare: Prepare = running) -> BadInput:
    """Returns a row of an order to a run."""
    return BadInput(name, "order to scale", f"scale {{folder}}/run {arguments}", says, prepare=prepare)


def state(name: str, *says: str, prepare: Prepare) -> BadInput:
    """Returns a row of a run directory whose workers cannot be shown."""
    return BadInput(name, "status of workers", "scale {folder}/run", says, prepare=prepare)


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


ORDERS = [
    order("more workers are ordered than the configuration allows", "rollout=5", "rollout=5: out of range", "1 to 4"),
    order("no worker at all is ordered", "rollout=0", "rollout=0: out of range", "expected 1 to 4"),
    order("a role is ordered that there is not", "critic=1", "critic=1: no such workers; expected rollout"),
    order("replay workers are ordered where the learner replays", "replay=1", "set replay.workers before the start"),
    order("one role is ordered twice", "rollout=1 rollout=2", "'rollout=2': given twice"),
    order("a negative number is ordered", "rollout=-1", "'rollout=-1': not ROLE=NUMBER"),
    order("half a worker is ordered", "rollout=1.5", "not ROLE=NUMBER", "for example rollout=3 replay=2"),
    order("a number in another script is ordered", "rollout=²", "not ROLE=NUMBER"),
]

STATUS = [
    state("the folder to scale is no run", "holds no config.json", prepare=lambda workspace: None),
    state("the run to scale is finished or serial", "no workers to scale", prepare=file_of_run("metrics.jsonl", b"")),
    state("the status of the workers is cut off", "not what a run writes", prepare=file_of_run("workers.json", b"{")),
    state("the status of the workers is not text", "not what a run", prepare=file_of_run("workers.json", b"\xff\xfe")),
    state("the process of the run is gone", "the run has died", "resumes it", prepare=status_with(started=1)),
    BadInput(
        "an order is cut off",
        "status of workers",
        poll_with(b'{"run": "'),
        ("is not a request; removed", "left: False"),
        outcome="note",
    ),
    BadInput(
        "an order out of range is written into the run directory by hand",
        "status of workers",
        lambda workspace: forged_order(workspace),
        ("request rollout=99 is ignored; expected 1 to 4",),
        outcome="note",
    ),
]


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


LEARNER, ROLLOUT = ResourceRequest("learner", 1, 1.0, 0.0), ResourceRequest("rollout", 1, 1.0, 0.0)
SHARDED = ResourceRequest("rollout", 1, 1.0, 2.0)
SHORTAGES = [
    BadInput(
        "all CPUs of the cluster are taken by others",
        "resources",
        shortage(LEARNER, ROLLOUT, total={"CPU": 2.0}, free={}),
        ("2 CPUs needed (1 learner x 1 + 1 rollout x 1), 2 there, 0 free",),
        outcome="note",
    ),
    BadInput(
        "one of two CPUs is taken by others",
        "resources",
        shortage(LEARNER, ROLLOUT, total={"CPU": 2.0}, free={"CPU": 1.0}),
        ("2 CPUs needed", "2 there, 1 free"),
        outcome="note",
    ),
    BadInput(
        "the GPUs are free in total, but on two nodes",
        "resources",
        shortage(SHARDED, total={"CPU": 8.0, "GPU": 2.0}, free={"CPU": 8.0, "GPU": 2.0}, node={"CPU": 4.0, "GPU": 1.0}),
        ("no single node has 1 CPUs and 2 GPUs for a rollout actor",),
        outcome="note",
    ),
    BadInput(
        "enough is free in total, but not on one node",
        "resources",
        shortage(ROLLOUT, total={"CPU": 4.0}, free={"CPU": 1.0}),
        ("Ray has not placed 1 rollout yet",),
        outcome="note",
    ),
    BadInput(
        "the pods of a pinned role are taken",
        "resources",
        shortage(ResourceRequest("rollout", 2, 0.0, 0.0, pinned=True), total={"rollout": 2.0}, free={"rollout": 1.0}),
        ("2 of the resource 'rollout' needed, 2 there, 1 free",),
        outcome="note",
    ),
    BadInput(
        "the cluster can never have the GPUs",
        "resources",
        lambda workspace: missing_resources([SHARDED], {"CPU": 8.0}),
        ("2 GPUs needed (1 rollout x 2), 0 there",),
        outcome="note",
    ),
    BadInput(
        "a local Ray is smaller than the roles",
        "resources",
        "train {folder}/run.toml runtime.kind=ray runtime.local_cpus=1 --run-dir {folder}/run",
        ("runtime.local_cpus = 1: 2 CPUs needed", "raise runtime.local_cpus"),
        prepare=lambda workspace: (unconnected(workspace), workspace.write_config()),
    ),
]


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
        process = identify(os.getpid())
        machine = this_machine()
        dead = {
            "machine": {"host": machine.host, "boot": machine.boot, "namespace": machine.namespace},
            "pid": os.getpid(),
            "started": 1 if process is not None else 0,
        }
        row = {"driver": dead, "process": dead, "children": [], "files": [], "folder": folder.format(workspace.folder)}
        (workspace.folder / NAME).write_text(json.dumps([row]))
        Leftovers(workspace.folder).sweep()
        return f"kept: {(workspace.folder / 'mine').is_dir() and Path('/').is_dir()}"

    return act


DAMAGED = [
    BadInput(f"the record of what an earlier process left is {name}", "record", act, says, outcome="note")
    for name, act, says in (
        ("empty", sweep(b""), ("is damaged and ignored", "mine")),
        ("cut off", sweep(b'[{"driver"'), ("is damaged and ignored", "mine")),
        ("a table instead of a list", sweep(b'{"a": 1}'), ("is damaged and ignored", "mine")),
        ("about a folder of the user", sweep_foreign("{}/mine"), ("kept: True",)),
        ("about the root folder", sweep_foreign("/"), ("kept: True",)),
    )
]

ROWS: list[BadInput] = [*ADDRESSES, *AUTHENTICATION, *ORDERS, *STATUS, *SHORTAGES, *DAMAGED]
