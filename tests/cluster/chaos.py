"""Seeded faults on real Ray: kill, stop, lie, stall, in every role, and in the end every pair is accounted for.

    python tests/cluster/chaos.py --runs 200 --seed 0 --out chaos.jsonl

Scripted workers (``cluster/scripted.py``) stand for the models; coordinator, pools, actors, object store, checkpoints
and ledger are the real ones. A run passes when it ends by itself with its number of steps, when the ledger has every
pair of every step exactly once, and, where nothing was set aside and rollouts were synchronous, when the weights are
those of a run that nobody disturbed, to the bit. A run that does not end in time is a hang: the script then dies with
a traceback of every thread.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from saga_dist.cluster.runtime import RayRuntime
from saga_dist.cluster.scripted import Script, scripted_factories
from saga_dist.config import RunConfig, parse_config
from saga_dist.coordinator import Coordinator
from saga_dist.counters import counter_generator
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.ledger import Ledger

STEPS, PAIRS = 6, 4
HANG_S = 300.0
ROLLOUT_FAULTS = ("kill", "stop", "raise", "bug", "short", "garbage", "slow")
REPLAY_FAULTS = ("kill", "stop", "raise", "bug", "slow")
LEARNER_FAULTS = ("kill", "stop")


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
    replay_workers: int
    faults: list[Fault]
    struck: int
    fates: dict[str, int]
    weights_equal: bool | None
    """None where they need not be: asynchronous, or with a group set aside."""
    wall_s: float


def configuration(staleness: int, replay_workers: int) -> RunConfig:
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
                "deadline_s": 8.0,
                "start_deadline_s": 120.0,
                "max_staleness": staleness,
                "max_log_prob_gap": 1e9,
            },
            "replay": {"workers": replay_workers, "num_cpus": 0.1, "deadline_s": 8.0},
            "runtime": {"learner_num_cpus": 0.1, "threads": 1, "heartbeat_s": 3.0, "max_learner_restarts": 5},
            "checkpoint": {"every_steps": 2},
            "evaluation": {"every_steps": STEPS},
        },
        where="chaos",
    )


def plan(seed: int, replay_workers: int) -> list[Fault]:
    """Returns one to four faults; one in six of those of a worker strikes so often that its group is set aside."""
    rng = counter_generator("chaos", seed)
    faults = []
    for _ in range(rng.integers(1, 5)):
        pair = f"s{rng.integers(STEPS):06d}.m0.p{rng.integers(PAIRS):02d}"
        times = 20 if rng.random() < 1 / 6 else int(rng.integers(1, 3))
        role = rng.choice(["rollout", "rollout", "replay", "learner"])
        if role == "learner":
            faults.append(Fault(f"encode-{rng.integers(STEPS)}", str(rng.choice(LEARNER_FAULTS)), 1))
        elif role == "replay" and replay_workers:
            faults.append(Fault(f"replay-{pair}", str(rng.choice(REPLAY_FAULTS)), times))
        else:
            faults.append(Fault(pair, str(rng.choice(ROLLOUT_FAULTS)), times))
    return faults


def train(config: RunConfig, folder: Path, script: Script) -> tuple[dict[str, int], list[Any]]:
    """Trains and returns the audited fates of all pairs and the final state of the learner."""
    with RayRuntime(config, scripted_factories(script)) as runtime:
        sampler = ClassBalancedSampler(runtime.learner.labels("train"), 4, 2, seed=config.run.seed)
        Coordinator(config, runtime, sampler, folder).run()
        state = json.loads((folder / "checkpoints" / f"step_{STEPS:08d}" / "learner.json").read_text())
    return Ledger(folder / "ledger.jsonl").audit(sampler, STEPS, PAIRS), state


def one_run(seed: int, quiet: list[Any]) -> Outcome:
    """Returns the outcome of one disturbed run.

    Raises:
        SagaError: it did not end well, or the ledger does not add up.
        AssertionError: steps or weights are not those of the quiet run.
    """
    rng = np.random.default_rng(seed)
    staleness, replay_workers = int(rng.integers(2)), int(rng.integers(2))
    faults = plan(seed, replay_workers)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "script").mkdir()
        (Path(place) / "run").mkdir()
        script = Script(str(Path(place) / "script"))
        for fault in faults:
            script.plan(fault.name, fault.kind, times=fault.times, seconds=20.0)
        fates, state = train(configuration(staleness, replay_workers), Path(place) / "run", script)
        struck = sum(script.strikes(fault.name) for fault in {fault.name: fault for fault in faults}.values())
    assert state[0] == STEPS, f"ended at step {state[0]}"
    must_equal = not staleness and not fates["quarantined"]
    equal = state == quiet if must_equal else None
    assert equal is not False, f"seed {seed}: other weights than those of the quiet run"
    return Outcome(seed, staleness, replay_workers, faults, struck, fates, equal, time.monotonic() - started)


def quiet_run() -> list[Any]:
    """Returns the final state of a run that nobody disturbs."""
    with tempfile.TemporaryDirectory() as place:
        return train(configuration(0, 0), Path(place), Script())[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others count on")
    parser.add_argument("--out", type=Path, help="one JSON line a run")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # answers of workers that were given up
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with one_ray():
        rehearse(options)


@contextmanager
def one_ray() -> Iterator[None]:
    """A Ray of our own that all runs share; only what was started here is ended."""
    folder = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")  # sockets lie below: a long path would not do
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def rehearse(options: argparse.Namespace) -> None:
    """Runs all seeds and says what they came to."""
    say = sys.stdout.write
    quiet = quiet_run()
    kinds: Counter[str] = Counter()
    fates: Counter[str] = Counter()
    equal = 0
    for seed in range(options.seed, options.seed + options.runs):
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        outcome = one_run(seed, quiet)
        kinds.update(fault.kind for fault in outcome.faults)
        fates.update(outcome.fates)
        equal += outcome.weights_equal is True
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        names = [fault.kind for fault in outcome.faults]
        say(f"run {seed}: {outcome.struck} strikes of {names}, {outcome.wall_s:.0f} s\n")
        sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()
    say(f"{options.runs} runs, 0 hangs; faults planned: {dict(kinds)}\n")
    say(
        f"pairs: {dict(fates)}, 0 lost, 0 told twice; weights equal to the quiet run where they must be: {equal} runs\n"
    )


if __name__ == "__main__":
    main()
