"""Minutes of training with a kill in each of them: how much of the time is still productive?

    python tests/runtime/ray/soak.py --minutes 10

Scripted workers, half a second a group, on a private Ray: four for rollouts, two for replay, the learner. A
first minute without a kill gives the quiet rate; productive time is the number of steps that the disturbed minutes
came to, each step counted once however often it had to be done, by the steps of as many quiet minutes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from saga_dist.config import parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import Interrupted
from saga_dist.runtime.ray.fake_workers import fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.utils.rng import counter_generator

PAIRS = 8
GROUP_S = 0.5
WARM_UP_S = 10.0
CONFIG = {
    "run": {"steps": 1_000_000},
    "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2},
    "rollout": {
        "workers": 4,
        "num_cpus": 0.1,
        "pairs_per_batch": PAIRS,
        "group_size": 2,
        "contributing_groups": PAIRS,
        "max_micro_batches": 1,
        "groups_per_lease": 1,
        "deadline_s": 20.0,
        "start_deadline_s": 120.0,
        "max_staleness": 1,
        "max_log_prob_gap": 1e9,
    },
    "replay": {"workers": 2, "num_cpus": 0.1, "deadline_s": 20.0},
    "runtime": {"learner_num_cpus": 0.1, "threads": 1, "heartbeat_s": 5.0, "local_cpus": 1},
    "checkpoint": {"every_steps": 5},
    "evaluation": {"every_steps": 1_000_000},
    "logging": {"tensorboard": False},
}


class Killer(threading.Thread):
    """Kills one process of the run a minute, in turn by lot.

    Args:
        runtime: whose workers and learner may be hit.
        first_at: of the first kill, monotonic clock.
        seed: of the lot.
    """

    def __init__(self, runtime: RayRuntime, first_at: float, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        self._runtime, self._next_at = runtime, first_at
        self._rng = counter_generator("soak", seed)
        self.over = threading.Event()
        self.victims: list[str] = []

    def run(self) -> None:
        """Kills until told that it is over."""
        while not self.over.wait(max(0.0, self._next_at - time.monotonic())):
            self._next_at += 60.0
            pids = self._pids()
            victim = sorted(pids)[self._rng.integers(len(pids))]
            os.kill(pids[victim], signal.SIGKILL)
            self.victims.append(victim)
            sys.stdout.write(f"{time.strftime('%X')}  {victim} killed\n")
            sys.stdout.flush()

    def _pids(self) -> dict[str, int]:
        assert isinstance(self._runtime.replays, RayPool)
        infos = {**self._runtime.rollouts.workers(), **self._runtime.replays.workers()}
        pids = {name: info.pid for name, info in infos.items()}
        if self._runtime.learner.info is not None:
            pids["learner"] = self._runtime.learner.info.pid
        return pids


def productive(ends: list[tuple[float, int]], quiet_from: float, noisy_from: float, until: float) -> float:
    """Returns the share of the disturbed time that was productive.

    Args:
        ends: (monotonic time, number) of every finished step, those that were done again included.
        quiet_from: when the undisturbed minute began; noisy_from: when the disturbed time began; until: its end.
    """

    def rate(start: float, end: float) -> float:
        reached = [max((step for at, step in ends if at <= moment), default=0) for moment in (start, end)]
        return (reached[1] - reached[0]) / (end - start)

    return rate(noisy_from, until) / rate(quiet_from, noisy_from)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    config = parse_config(CONFIG, where="soak")
    with (
        tempfile.TemporaryDirectory() as folder,
        RayRuntime(config, fake_factories(FaultPlan("", GROUP_S))) as runtime,
    ):
        while len(runtime.rollouts.workers()) < config.rollout.workers:
            time.sleep(0.1)
        quiet_from = time.monotonic() + WARM_UP_S
        noisy_from = quiet_from + 60.0
        until = noisy_from + 60.0 * options.minutes
        killer = Killer(runtime, noisy_from + 1.0, options.seed)
        killer.start()
        data = config.data
        labels = runtime.learner.labels("train")
        sampler = ClassBalancedSampler(labels, data.batch_size, data.images_per_class, seed=config.run.seed)
        ends: list[tuple[float, int]] = []
        coordinator = Coordinator(
            config,
            runtime,
            sampler,
            Path(folder),
            on_step=lambda result: ends.append((time.monotonic(), result.step)),
            should_stop=lambda: time.monotonic() > until,
        )
        with suppress(Interrupted):
            coordinator.run()
        killer.over.set()
        steps = ends[-1][1]
        fates = PairLedger(Path(folder) / "ledger.jsonl").audit(sampler, steps, PAIRS)
    share = productive(ends, quiet_from, noisy_from, until)
    again = len(ends) - steps
    sys.stdout.write(
        f"{options.minutes:g} minutes, {len(killer.victims)} kills ({', '.join(killer.victims)}): {steps} steps, "
        f"{again} done again, {share:.1%} of the time productive; pairs: {fates}, 0 lost, 0 counted twice\n"
    )


if __name__ == "__main__":
    main()
