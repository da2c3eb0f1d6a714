"""Many disturbed runs one after the other on one cluster of two nodes; started by ``chaos.py``.

Workers live on from run to run unless a fault takes them: what it leaves behind, the next run has to bear.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray_nodes import start_node

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import LearnerLost
from saga_dist.runtime.ray.fake_workers import fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.utils.rng import counter_generator

STEPS, PAIRS = 6, 4
HANG_S = 600.0
HEARTBEAT_S = 3.0
STORE_BYTES = 100 * 1024**2
ROLLOUT_FAULTS = ("kill", "stop", "raise", "bug", "short", "garbage", "twice", "slow")
REPLAY_FAULTS = ("kill", "stop", "raise", "bug", "slow")
LEARNER_FAULTS = ("kill", "stop")
SLOW_S = 20.0
"""Longer than any deadline: the answer comes too late."""

# Ray's own failure injection: per cent of the calls of actors whose request, or whose answer, never arrives.
RPC_FAILURES = {
    "CoreWorkerService.grpc_client.PushTask": {"num_failures": -1, "req_failure_prob": 1, "resp_failure_prob": 1}
}


@dataclass(frozen=True)
class Stream:
    """What the runs of a stream have in common."""

    replay_workers: int
    """0: replay in the learner."""
    loses_calls: bool
    """True: Ray drops one request and one answer in a hundred."""
    is_fed: bool
    """True: rollout workers return groups one by one; False: lease by lease."""


STREAMS = tuple(Stream(replay, calls, replay == calls) for calls in (False, True) for replay in (0, 1))
"""Seed s belongs to stream s % 4."""


@dataclass(frozen=True)
class Fault:
    """One planned fault."""

    name: str
    """Of the script: a pair id, ``replay-<pair id>``, ``encode-<step>``."""
    kind: str
    times: int


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    seed: int
    staleness: int
    stream: Stream
    faults: list[Fault]
    struck: int
    fates: dict[str, int]
    weights_equal: bool | None
    """None where they need not be: asynchronous, or with a group set aside."""
    hangs_noticed_s: list[float]
    """Seconds from each SIGSTOP to the pool's, or coordinator's, decision to replace the worker."""
    wall_s: float


def configuration(staleness: int, stream: Stream) -> RunConfig:
    """Returns the configuration of one run."""
    return parse_config(
        {
            "run": {"steps": STEPS},
            "data": {"layout": "birds", "image_size": 80, "batch_size": 4, "images_per_class": 2},
            "rollout": {
                "workers": 2,
                "num_cpus": 0.1,
                "pairs_per_batch": PAIRS,
                "group_size": 2,
                "contributing_groups": PAIRS,
                "max_micro_batches": 1,
                "groups_per_lease": 2,
                "continuous_feeding": stream.is_fed,
                "deadline_s": 8.0,
                "start_deadline_s": 120.0,
                "max_staleness": staleness,
                "max_log_prob_gap": 1e9,
                "max_quarantined": 1000,  # over all runs of the stream; each audit looks at its own
            },
            "replay": {"workers": stream.replay_workers, "num_cpus": 0.1, "deadline_s": 8.0},
            "runtime": {
                "learner_num_cpus": 0.1,
                "threads": 1,
                "heartbeat_s": HEARTBEAT_S,
                "max_learner_restarts": 8,
                "pin_roles": True,
            },
            "checkpoint": {"every_steps": 2},
            "evaluation": {"every_steps": STEPS},
            "logging": {"tensorboard": False},
        },
        where="chaos",
    )


def plan(seed: int, stream: Stream) -> list[Fault]:
    """Returns one to four faults; one in six of those of a worker strikes so often that its group is set aside."""
    rng = counter_generator("chaos", seed)
    faults = []
    for _ in range(rng.integers(1, 5)):
        pair = f"s{rng.integers(STEPS):06d}.m0.p{rng.integers(PAIRS):02d}"
        times = 20 if rng.random() < 1 / 6 else int(rng.integers(1, 3))
        match rng.choice(["rollout", "rollout", "rollout", "replay", "replay", "learner", "node"]):
            case "learner":
                faults.append(Fault(f"encode-{rng.integers(STEPS)}", str(rng.choice(LEARNER_FAULTS)), 1))
            case "node":
                faults.append(Fault(f"encode-{rng.integers(STEPS)}", "node", 1))
            case "replay" if stream.replay_workers:
                faults.append(Fault(f"replay-{pair}", str(rng.choice(REPLAY_FAULTS)), times))
            case _:
                faults.append(Fault(pair, str(rng.choice(ROLLOUT_FAULTS)), times))
    return list({fault.name: fault for fault in faults}.values())  # a script has one plan a name


class Nodes:
    """A head and a second node that may be lost, whereupon another one comes."""

    def __init__(self, stream: Stream) -> None:
        self._room = {"learner": 1, "rollout": 1, "replay": stream.replay_workers}
        resources = {name: count for name, count in self._room.items() if count}
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, "resources": resources}
        # A node that registers hooks for the end of this process can be started from the main thread only.
        self._cluster = start_node(lambda: Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False))
        atexit.register(self.close)
        self._second = self._add()
        self.address = self._cluster.address

    def lose(self) -> None:
        """Kills the second node's raylet, with all workers there, and starts another node."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._add()

    def close(self) -> None:
        """Ends what was started here."""
        atexit.unregister(self.close)
        self._cluster.shutdown()

    def _add(self) -> Any:
        resources = {name: count for name, count in self._room.items() if count}
        return start_node(
            lambda: self._cluster.add_node(num_cpus=1, resources=resources, object_store_memory=STORE_BYTES)
        )


class Notices(logging.Handler):
    """Remembers when a silent worker or learner was noticed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the time of a notice of silence."""
        if "no heartbeat" in record.getMessage():
            self.times.append(record.created)

    def delays(self, stops: list[float]) -> list[float]:
        """Returns seconds from each stop to the first notice after it; a stop that ended otherwise has none."""
        found, notices = [], sorted(self.times)
        for stop in sorted(stops):
            later = [notice for notice in notices if notice >= stop]
            if later:
                found.append(later[0] - stop)
                notices.remove(later[0])
        return found


@contextmanager
def node_losses(nodes: Nodes, script: FaultPlan, names: list[str]) -> Iterator[None]:
    """Loses a node whenever one of the named faults strikes; raises when another one cannot be started."""
    over = threading.Event()

    def watch() -> None:
        waiting = set(names)
        while waiting and not over.wait(0.05):
            for name in sorted(waiting):
                if script.num_triggered(name):
                    waiting.discard(name)
                    nodes.lose()

    with ThreadPoolExecutor(1, thread_name_prefix="node losses") as threads:
        watching = threads.submit(watch)
        try:
            yield
        finally:
            over.set()
        watching.result()


class Rehearsal:
    """Runs of one stream on its cluster."""

    def __init__(self, stream: Stream, place: Path, nodes: Nodes) -> None:
        self._stream, self._place, self._nodes = stream, place, nodes
        (place / "script").mkdir()
        self._script = FaultPlan(str(place / "script"))
        self._notices = Notices()
        logging.getLogger("saga_dist").addHandler(self._notices)
        self._runtime = RayRuntime(configuration(0, stream), fake_factories(self._script))
        self._quiet: list[Any] | None = None
        """Learner state at the end of a run that nobody disturbed."""

    def close(self) -> None:
        """Ends the workers."""
        self._runtime.close()

    def run(self, seed: int) -> Outcome:
        """Returns the outcome of one disturbed run.

        Raises:
            SagaError: it did not end well, or the ledger does not add up.
            AssertionError: steps or weights are not those of the quiet run.
        """
        if self._quiet is None:
            self._quiet = self._train(configuration(0, self._stream), [])[1]
        staleness, faults = int(counter_generator("staleness", seed).integers(2)), plan(seed, self._stream)
        started = time.monotonic()
        for fault in faults:
            # The learner goes on while its node, or the other one, is taken away.
            kind, seconds = ("slow", 0.0) if fault.kind == "node" else (fault.kind, SLOW_S)
            self._script.plan(fault.name, kind, times=fault.times, seconds=seconds)
        self._notices.times.clear()
        fates, state = self._train(configuration(staleness, self._stream), faults)
        struck = {fault.name: self._script.triggered_at(fault.name) for fault in faults}
        stops = [at for fault in faults if fault.kind == "stop" for at in struck[fault.name]]
        self._script.clear()
        assert state[0] == STEPS, f"seed {seed}: ended at step {state[0]}"
        must_equal = not staleness and not fates["quarantined"]
        equal = state == self._quiet if must_equal else None
        assert equal is not False, f"seed {seed}: other weights than those of the quiet run"
        return Outcome(
            seed,
            staleness,
            self._stream,
            faults,
            sum(map(len, struck.values())),
            fates,
            equal,
            self._notices.delays(stops),
            time.monotonic() - started,
        )

    def _train(self, config: RunConfig, faults: list[Fault]) -> tuple[dict[str, int], list[Any]]:
        """Trains from the start; returns the audited fates of all pairs and the final state of the learner."""
        sampler = ClassBalancedSampler(self._renew(config), 4, 2, seed=config.run.seed)
        nodes = [fault.name for fault in faults if fault.kind == "node"]
        with (
            tempfile.TemporaryDirectory(dir=self._place) as folder,
            node_losses(self._nodes, self._script, nodes),
        ):
            run_dir = Path(folder)
            Coordinator(config, self._runtime, sampler, run_dir).run()
            state = json.loads((run_dir / "checkpoints" / f"step_{STEPS:08d}" / "learner.json").read_text())
            return PairLedger(run_dir / "ledger.jsonl").audit(sampler, STEPS, PAIRS), state

    def _renew(self, config: RunConfig) -> np.ndarray:
        """Puts everything back to the start; returns the labels of the training images."""
        self._runtime.rollouts.forget()
        self._runtime.replays.forget()
        losses = 0
        while True:
            try:
                if losses:
                    self._runtime.restart_learner()
                else:
                    self._runtime.reset_learner(config)
                return self._runtime.learner.labels("train")
            except LearnerLost:  # these calls get lost too, and no coordinator is there yet to mend it
                losses += 1
                if losses > config.runtime.max_learner_restarts:
                    raise


def main() -> None:
    stream = STREAMS[int(sys.argv[1])]
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling)
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # answers of workers that were given up
    if stream.loses_calls:
        os.environ["RAY_testing_rpc_failure"] = json.dumps(RPC_FAILURES)  # noqa: SIM112 (Ray's spelling)
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("saga_dist").setLevel(logging.WARNING)
    logging.getLogger("saga_dist").propagate = False
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    # Sockets lie below this folder: a long path would not do.
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True) as place:
        os.environ["RAY_TMPDIR"] = place  # for all that a node writes; the cluster's address goes there in any case
        nodes = Nodes(stream)
        try:
            ray.init(address=nodes.address, namespace="chaos", log_to_driver=False)
            with closing(Rehearsal(stream, Path(place), nodes)) as rehearsal:
                for seed in map(int, sys.argv[2:]):
                    faulthandler.dump_traceback_later(HANG_S, exit=True)
                    sys.stdout.write(json.dumps(asdict(rehearsal.run(seed))) + "\n")
                    sys.stdout.flush()
        finally:
            ray.shutdown()
            nodes.close()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
