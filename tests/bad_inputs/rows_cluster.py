"""Clusters, addresses and orders that cannot be used, as far as that is known without Ray."""

from __future__ import annotations

from bad_inputs.cluster_acts import (
    Prepare,
    closed_port,
    environment,
    file_of_run,
    forged_order,
    join,
    join_refused,
    poll_with,
    running,
    shortage,
    status_with,
    sweep,
    sweep_foreign,
    unconnected,
)
from bad_inputs.row import BadInput

from saga_dist.runtime.ray.resources import ResourceRequest, missing_resources


def address_row(name: str, value: str, *says: str) -> BadInput:
    """Returns a row of an address in RAY_ADDRESS."""
    says = ("RAY_ADDRESS = ", *says)
    return BadInput(name, "address", join, says, prepare=environment(RAY_ADDRESS=value))


def order(name: str, arguments: str, *says: str, prepare: Prepare = running) -> BadInput:
    """Returns a row of an order to a run."""
    return BadInput(name, "order to scale", f"scale {{folder}}/run {arguments}", says, prepare=prepare)


def state(name: str, *says: str, prepare: Prepare) -> BadInput:
    """Returns a row of a run directory whose workers cannot be shown."""
    return BadInput(name, "status of workers", "scale {folder}/run", says, prepare=prepare)


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
        forged_order,
        ("request rollout=99 is ignored; expected 1 to 4",),
        outcome="note",
    ),
]

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

DAMAGED = [
    BadInput(f"the record of what an earlier process left is {name}", "record", act, says, outcome="note")
    for name, act, says in (
        ("empty", sweep(b""), ("is damaged and ignored", "mine")),
        ("cut off", sweep(b'[{"driver"'), ("is damaged and ignored", "mine")),
        ("a table instead of a list", sweep(b'{"a": 1}'), ("is damaged and ignored", "mine")),
        ("about a folder of the user", sweep_foreign("{}/mine"), ("kept: True",)),
    )
]

ROWS: list[BadInput] = [*ADDRESSES, *AUTHENTICATION, *ORDERS, *STATUS, *SHORTAGES, *DAMAGED]
