"""A training over three hosts whose links are cut, slowed and healed, and whose nodes are taken away.

Run by ``test_network``, on the host ``head``; workers are scripted, all else is real. Host ``a`` has the learner, the
replay worker and two rollout workers, ``b`` the other two; later another node, for all roles, takes the place of ``b``.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2
from runtime.ray.net_hosts import CLOCK, HEAD, PORT, Hosts, wait_until

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import Interrupted
from saga_dist.protocols import GradientHandle
from saga_dist.runtime.ray.fake_workers import FakeLearner, FakeReplayWorker, FakeRolloutWorker, fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.workers.serial_pool import SerialPool

PAIRS, GROUP_S, HEARTBEAT_S = 8, 0.2, 3.0
HANG_S = 480.0
SHIFT_S, NOTICE_S = 60, 25
"""Seconds that the clock of host ``b`` is ahead, and seconds from a notice until the node is taken away."""


def configuration(address: str) -> RunConfig:
    """Returns the configuration of the run; it writes no checkpoint but those that something asks for."""
    never = 1_000_000
    return parse_config(
        {
            "run": {"steps": never},
            "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2},
            "rollout": {
                "workers": 4,
                "num_cpus": 0.1,
                "pairs_per_batch": PAIRS,
                "group_size": 2,
                "contributing_groups": PAIRS,
                "max_micro_batches": 1,
                "groups_per_lease": 2,
                "deadline_s": 20.0,
                "start_deadline_s": 240.0,
                "max_log_prob_gap": 1e9,
                "max_attempts": 8,
                "record": False,
            },
            "replay": {"workers": 1, "num_cpus": 0.1, "deadline_s": 20.0},
            "runtime": {
                "address": address,
                "learner_num_cpus": 0.1,
                "learner_deadline_s": 60.0,
                "threads": 1,
                "heartbeat_s": HEARTBEAT_S,
                "pin_roles": True,
            },
            "checkpoint": {"every_steps": never},
            "evaluation": {"every_steps": never},
            "logging": {"tensorboard": False},
        },
        where="network",
    )


class Trouble:
    """Everything that happens to the network while the run goes on.

    Args:
        hosts: the hosts.
        runtime: runtime of the run.
        folder: working folder, with the run directory in ``run``.
    """

    def __init__(self, hosts: Hosts, runtime: RayRuntime, folder: Path) -> None:
        self._hosts, self._runtime, self._folder = hosts, runtime, folder
        self.over = threading.Event()
        self.num_steps = 0
        """Finished steps, those that were done again included."""
        self.seen: dict[str, Any] = {}

    def run(self) -> None:
        """Lets everything happen; ends the run in any case."""
        try:
            self._all_up()
            self.seen["clock_ahead_s"] = round(ray.get(_clock.remote(), timeout=60) - time.time())
            for happen in (self._cut, self._slow, self._drain_workers, self._drain_learner):
                happen()
                self._steps(3)
        finally:
            self.over.set()

    def _cut(self) -> None:
        """Cuts host b off for as long as the run needs to give up its workers; the others go on alone."""
        self._hosts.cut("b")
        gone = self._until(lambda: not self._rollouts_on("b"), "the workers on b are given up", seconds=60)
        self.seen["cut_noticed_s"] = round(gone, 1)
        self._steps(2)
        self._hosts.heal("b")
        self._all_up()

    def _slow(self) -> None:
        self.seen["slowed_by"] = self._hosts.slow("b")
        self._steps(3)
        self._hosts.speed_up("b")
        self._all_up()

    def _drain_workers(self) -> None:
        """Node b is to go and has half of the rollout workers; when it is gone, another one comes."""
        self._notice("b")
        self._until(lambda: not self._rollouts_on("b"), "no worker is left on b", seconds=NOTICE_S)
        assert not self._checkpoints(), "nothing that b has costs steps"
        self._steps(2)
        self._hosts.kill("b")
        start_node(self._hosts, "b", self._folder, learner=1, rollout=2, replay=1)
        self._all_up()

    def _drain_learner(self) -> None:
        """Node a is to go and has the learner: there is a checkpoint before it does."""
        self._notice("a")
        saved = self._until(lambda: bool(self._checkpoints()), "there is a checkpoint", seconds=NOTICE_S)
        self.seen["checkpoint_after_s"] = round(saved, 1)
        self._until(lambda: not self._rollouts_on("a"), "no worker is left on a", seconds=NOTICE_S)
        self._hosts.kill("a")
        self._until(lambda: self._learner_host() == self._hosts.namespace("b"), "the learner is on b", seconds=180)

    # ------------------------------------------------------------------ what the run is asked

    def _notice(self, host: str) -> None:
        """Gives notice that the node of a host is taken away, as a spot interruption does."""
        (node_id,) = (
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeManagerAddress"] == self._hosts.address(host)
        )
        accepted, reason = ray._private.worker.global_worker.gcs_client.drain_node(
            node_id,
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
            "spot interruption",
            int(time.time() + NOTICE_S) * 1000,
        )
        assert accepted, reason

    def _rollouts_on(self, host: str) -> int:
        names = [info.host for info in self._runtime.rollouts.workers().values()]
        return names.count(self._hosts.namespace(host))

    def _learner_host(self) -> str:
        info = self._runtime.learner.info
        return info.host if info else ""

    def _checkpoints(self) -> list[Path]:
        return list((self._folder / "run" / "checkpoints").glob("step_*/manifest.json"))

    def _all_up(self) -> None:
        replays = self._runtime.replays
        assert isinstance(replays, RayPool)
        ready = lambda: len(self._runtime.rollouts.workers()) == 4 and len(replays.workers()) == 1  # noqa: E731
        self._until(ready, "all workers are up", seconds=180)

    def _steps(self, number: int) -> None:
        wanted = self.num_steps + number
        self._until(lambda: self.num_steps >= wanted, f"{number} more steps", seconds=120)

    def _until(self, condition: Callable[[], bool], what: str, *, seconds: float) -> float:
        found = wait_until(condition, what, seconds=seconds)
        sys.stderr.write(f"{time.strftime('%X')} step {self.num_steps}: {what}\n")
        return found


@ray.remote(num_cpus=0, resources={"clock": 1})
def _clock() -> float:
    return time.time()


def start_node(hosts: Hosts, host: str, folder: Path, **room: int) -> None:
    """Starts a Ray node with room for so many actors of each role; the clock of host b is ahead."""
    shift = {"PYTHONPATH": str(CLOCK), "HOST_CLOCK_SHIFT_S": str(SHIFT_S)} if host == "b" else {}
    hosts.start_ray(host, folder, {**room, **({"clock": 1} if host == "b" else {})}, **shift)


class QuietRuntime:
    """The same scripted workers in this process, to which nothing happens."""

    def __init__(self, config: RunConfig) -> None:
        rollout, replay = FakeRolloutWorker(config, FaultPlan()), FakeReplayWorker(config, FaultPlan())
        self.learner = FakeLearner(config, FaultPlan())
        self.rollouts = SerialPool(
            lambda tasks: rollout.rollout(tasks, [task.tokens for task in tasks]), lease=2, max_attempts=1
        )
        self.replays = SerialPool(
            lambda tasks: [GradientHandle.of(replay.replay(task, task.tokens)) for task in tasks],
            lease=1,
            max_attempts=1,
        )

    def backbone_digest(self) -> str:
        return "scripted"

    def take_checkpoint_request(self) -> bool:
        return False


def train(config: RunConfig, runtime: Any, run_dir: Path, **requests: Any) -> ClassBalancedSampler:
    """Trains until a stop is requested; returns the sampler of the run."""
    run_dir.mkdir()
    data = config.data
    sampler = ClassBalancedSampler(runtime.learner.labels("train"), data.batch_size, data.images_per_class, seed=0)
    with suppress(Interrupted):
        Coordinator(config, runtime, sampler, run_dir, **requests).run()
    return sampler


def final_state(run_dir: Path) -> list[Any]:
    """Returns step and weights of the learner in the newest checkpoint."""
    newest = max((run_dir / "checkpoints").glob("step_*/learner.json"))
    return json.loads(newest.read_text("utf-8"))  # type: ignore[no-any-return]


def main() -> None:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("saga_dist").setLevel(logging.WARNING)
    hosts, folder = Hosts(sys.argv[1]), Path(sys.argv[2])
    config = configuration(f"{hosts.address(HEAD)}:{PORT}")
    with (
        RayRuntime(config, fake_factories(FaultPlan("", GROUP_S))) as runtime,
        ThreadPoolExecutor(1, thread_name_prefix="trouble") as threads,
    ):
        trouble = Trouble(hosts, runtime, folder)
        happening = threads.submit(trouble.run)

        def count(result: object) -> None:
            trouble.num_steps += 1

        sampler = train(config, runtime, folder / "run", on_step=count, should_stop=trouble.over.is_set)
        happening.result()
    disturbed = final_state(folder / "run")
    steps = disturbed[0]
    quiet = QuietRuntime(config)
    train(config, quiet, folder / "quiet", should_stop=lambda: quiet.learner.step == steps)
    fates = PairLedger(folder / "run" / "ledger.jsonl").audit(sampler, steps, PAIRS)
    equal = disturbed == final_state(folder / "quiet")
    outcome = {"steps": steps, "done": trouble.num_steps, "fates": fates, "weights_equal": equal, **trouble.seen}
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
