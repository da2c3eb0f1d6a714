"""Run directories as a run leaves them at some moment, made by hand: rows, recordings, owner, workers, results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from saga_dist.config import parse_config
from saga_dist.types import Completions, ImagePair, Sampling, ScoredGroup
from saga_dist.utils.directory_owner import OWNER_NAME
from saga_dist.utils.owner_record import Owner
from saga_dist.wire import recording_path, write_recording

SECTIONS = {
    "run": {"steps": 10},
    "data": {"layout": "birds", "image_size": 80},
    "model": {"path": "standin"},
    "prompt": {"vocabulary": "standin_birds"},
    "runtime": {"kind": "ray"},
}
TEXTS = ("The bills differ.\nno", "yes", "no \x1b[31mred", "")


def make_group(*, pair_id: str = "s000003.m0.p01", rewards: tuple[float, ...] = (1, 0, 1, 0)) -> ScoredGroup:
    """A group of four completions on two different classes: no, yes, no, and one without a verdict."""
    sampling, empty = Sampling(4, 0.7, 0.95, 16, 0), np.zeros(1, bool)
    log_probs = (np.zeros(1, np.float32),) * 4
    return ScoredGroup(
        pair=ImagePair(pair_id, 3, 4, 0, 1),
        completions=Completions(pair_id, ((1,),) * 4, TEXTS, log_probs, ("stop",) * 4, sampling, 0),
        verdicts=(False, True, False, None),
        rewards_G=np.array(rewards, np.float32),
        is_correct_G=np.array(rewards, bool),
        advantages_G=np.array([1, -1, 1, -1] if len(set(rewards)) > 1 else [0] * 4, np.float32),
        describes_a=(empty,) * 4,
        describes_b=(empty,) * 4,
    )


def make_run(folder: Path, *, num_steps: int, **sections: Mapping[str, object]) -> Path:
    """Writes a run of 10 steps of which ``num_steps`` were taken, the last of them with a recording; returns it."""
    tree = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {**SECTIONS, **sections}}
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "rollouts").mkdir()
    (folder / "config.json").write_text(parse_config(tree, where="test").model_dump_json())
    for step in range(1, num_steps + 1):
        add_row(folder, step)
    if num_steps:
        write_recording(recording_path(folder / "rollouts", num_steps), [make_group(rewards=(1,) * 4), make_group()])
    return folder


def add_row(folder: Path, step: int) -> None:
    """Appends the row of a step."""
    row = {"step": step, "rollout/reward_mean": step / 8, "share/tower_grpo": 0.25, "step/wall_s": 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        if step == 1:
            row["loss/kl"] = 2.5  # the later steps have none
        file.write(json.dumps({**row, "rollout_pool/in_flight_share": 0.5, "rollout/tokens_per_s": 1992.4}) + "\n")


def beat(folder: Path, number: int, *, elsewhere: bool = True) -> None:
    """Writes a heartbeat of an owner on another host, or of this process."""
    owner = replace(Owner.this_process(), token="a", beat=number)
    if elsewhere:
        owner = replace(owner, machine="another boot", host="gpu-7", pid=4321)
    assert owner.pid == (4321 if elsewhere else os.getpid())
    (folder / OWNER_NAME).write_bytes(owner.content(number))


def write_workers(folder: Path, *states: str) -> None:
    """Writes ``workers.json`` with a rollout pool whose workers are in the given states."""
    members = [{"name": f"rollout-{number}", "state": state} for number, state in enumerate(states)]
    pool = {"target": len(states), "fewest": 1, "most": 8, "members": members}
    view = {"run": "r", "host": "gpu-7", "pid": 4321, "written_at": 0.0, "pools": {"rollout": pool}}
    (folder / "workers.json").write_text(json.dumps(view))


def write_results(folder: Path) -> None:
    """Writes ``results.json`` with Recall@1 2.5 before and 31.25 after."""
    methods = [_method("pre-trained", 1, 0), _method("trained", 12, 10)]
    (folder / "results.json").write_text(json.dumps({"methods": methods, "backbone_unchanged": True}))


def _method(name: str, num_first: int, steps: int) -> dict[str, object]:
    recall = num_first / 40
    split = {
        "num_queries": 40,
        "num_classes": 4,
        "recall_at_1": recall,
        "recall_at_2": recall,
        "recall_at_4": recall,
        "recall_at_8": recall,
        "nmi": 0.5,
        "confidence_interval": (0.0, 1.0),
    }
    return {"name": name, "splits": {"test": split}, "seeds": (0,), "wall_s": 1.0, "optimizer_steps": steps}
