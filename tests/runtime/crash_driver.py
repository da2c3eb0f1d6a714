"""Runs ``saga-dist`` commands in forked processes that die where they are told to; the servant of test_crash_points.py.

Everything heavy is imported once; every command gets a fresh process of its own, with the real tower, replay, learner,
checkpoints and command line, and with rollouts that come from a script instead of the MLLM's sampling. Besides the
package's own ``files.crash_point``s there are some before and after the phases of a step, put around functions here.

Input and output are JSON, one line each: ``{"arguments": [...], "crash": "EVENT:NAME@TIME", "trace": FILE or "",
"kill_after_s": seconds or 0, "deadline_s": seconds, "log": FILE}`` gives ``{"code": exit code, or minus a signal}``.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import saga_dist.models.families.qwen3_vl.family
import saga_dist.runtime.run
import saga_dist.runtime.serial
import saga_dist.training.coordinator
import saga_dist.utils.atomic_io
import saga_dist.workers.learner
from saga_dist.cli import main as cli
from saga_dist.config import RunConfig
from saga_dist.metrics.log import MetricsLog
from saga_dist.retrieval.results import Results
from saga_dist.runtime.build import build_family, build_prompt, torch_dtype
from saga_dist.types import EncoderTokens, StepResult
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.learner import Learner
from saga_dist.workers.replay import ReplayWorker
from saga_dist.workers.rollout import RolloutWorker

PHASES: tuple[tuple[Any, str], ...] = (
    (Learner, "encode"),
    (RolloutWorker, "rollout"),
    (ReplayWorker, "replay"),
    (saga_dist.workers.learner, "clip_gradients"),
    (torch.optim.AdamW, "step"),
    (Learner, "finish_step"),
    (MetricsLog, "write"),
    (MetricsLog, "truncate"),
    (saga_dist.training.coordinator, "validation_recall"),
    (Learner, "save"),
    (Learner, "load"),
    (Learner, "save_encoder"),
    (saga_dist.runtime.run, "evaluate_method"),
    (Results, "save"),
)
"""Functions before and after which a run can be told to die, as ``before:Learner.encode``."""


def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    """In pairs with an odd number one completion of the group says yes, so that they contribute; the others say no."""
    verdict = "yes" if int(pair_id[-2:]) % 2 and completion == 0 else "no"
    return (
        '{"bird_1": {"bill": "red", "crown": "blue"}, "bird_2": {"bill": "gold", "crown": "white"}, '
        f'"differences": "bill differs", "confidence": "high", "reasoning": "So.", "same_species": "{verdict}"}}'
    )


def scripted_rollout_worker(config: RunConfig) -> RolloutWorker:
    family = build_family(config)
    tokenizer = family.load_tokenizer()
    return RolloutWorker(
        lambda: ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id),
        family=family,
        prompt=build_prompt(config),
        dtype=torch_dtype(config),
        advantage_epsilon=config.objective.advantage_epsilon,
        deadline_s=config.rollout.deadline_s,
    )


class Trace:
    """Stands for a crash point that is nowhere, and notes all that are passed."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def __eq__(self, point: object) -> bool:
        self.passed.append(str(point))
        return False

    __hash__ = None  # type: ignore[assignment]


def surround(owner: Any, name: str) -> None:
    """Puts crash points before and after a function."""
    plain: Callable[..., Any] = getattr(owner, name)
    label = Path(f"{getattr(owner, '__name__', '').rpartition('.')[2]}.{name}")

    def surrounded(*arguments: Any, **options: Any) -> Any:
        saga_dist.utils.atomic_io.crash_point("before", label)
        result = plain(*arguments, **options)
        saga_dist.utils.atomic_io.crash_point("after", label)
        return result

    setattr(owner, name, surrounded)


def tear_rows() -> None:
    """Makes ``torn:metrics.jsonl@N`` die in the middle of the N-th row."""
    plain, rows = MetricsLog.write, itertools.count(1)

    def write(self: MetricsLog, result: StepResult) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        plain(self, result)
        at, row = saga_dist.utils.atomic_io._crash_at, next(rows)
        if (
            isinstance(at, str)
            and at == "torn:metrics.jsonl"
            and row == int(saga_dist.utils.atomic_io._crash_time or 1)
        ):
            os.truncate(self.path, (size + self.path.stat().st_size) // 2)
        saga_dist.utils.atomic_io.crash_point("torn", self.path)

    MetricsLog.write = write  # type: ignore[method-assign]


def run_command(order: dict[str, Any]) -> None:
    """The forked process: never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    trace = Trace()
    saga_dist.utils.atomic_io._crash_at, _, saga_dist.utils.atomic_io._crash_time = order["crash"].partition("@")
    if order["trace"]:
        saga_dist.utils.atomic_io._crash_at = trace  # type: ignore[assignment]
    sys.argv = ["saga-dist", *order["arguments"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        if order["trace"]:
            Path(order["trace"]).write_text("\n".join(trace.passed))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(child: int, order: dict[str, Any]) -> int:
    """Returns the exit code of the forked process, which has a deadline."""
    started = time.monotonic()
    limit = order["kill_after_s"] or order["deadline_s"]
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - started > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL if order["kill_after_s"] else -signal.SIGALRM
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    saga_dist.runtime.serial.build_rollout_worker = scripted_rollout_worker
    tear_rows()
    for owner, name in PHASES:
        surround(owner, name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            run_command(order)
        sys.stdout.write(json.dumps({"code": watch(child, order)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
