"""What does not fit is said in one line each, on made-up machines; and what would fit is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from saga_dist.cli.doctor_checks import run_checks
from saga_dist.config import load_config
from saga_dist.estimate import planner
from saga_dist.estimate.capacity import (
    MachineLimits,
    capacity_warnings,
    fits_with,
    fitting_overrides,
    machine_limits,
    runs_on_this_machine,
)
from saga_dist.estimate.placement import assign_devices
from saga_dist.estimate.rates import CARDS, Card

ROOT = Path(__file__).resolve().parents[2]
PLENTY = MachineLimits(gpus=64, host=1 << 50, shm=1 << 50, disk=1 << 50)
FEW = [
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "evaluation.verdict_pairs=20",
]


GREEDY = ["replay.completions_per_chunk=8", "optimizer.gradient_checkpointing=false"]


@pytest.fixture(scope="module")
def cub() -> Iterator[planner.PlanInputs]:
    """The paper's run on the paper's card, without the two settings that make it fit."""
    config = load_config(ROOT / "configs" / "cub.toml", GREEDY)
    card = CARDS["h200"]
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        yield plan_inputs


def on(plan_inputs: planner.PlanInputs, card: Card) -> planner.MemoryPlan:
    return planner.memory_plan(replace(plan_inputs, card=card))


def test_each_limit_has_its_line(cub: planner.PlanInputs) -> None:
    filled = on(cub, replace(CARDS["h200"], memory=1e12))
    assert list(capacity_warnings(filled, PLENTY)) == []
    for limits, token_counts in (
        (replace(PLENTY, gpus=0), "1 GPUs wanted, 0 here"),
        (replace(PLENTY, host=1 << 30), "of host memory, 1.07 GB are free"),
        (replace(PLENTY, disk=20 << 30), "21.5 GB are free; lower checkpoint.keep"),
        (replace(PLENTY, shm=1 << 28), "runtime.object_store_mb = 512 but /dev/shm has 268 MB free"),
    ):
        (line,) = capacity_warnings(filled, limits)
        assert token_counts in line and "\n" not in line


@pytest.mark.integration
def test_a_card_that_is_too_small_and_the_way_out(cub: planner.PlanInputs) -> None:
    filled = on(cub, CARDS["h200"])
    most = cub.work.dynamic_sampling.micro_batches_max
    (line,) = capacity_warnings(filled, PLENTY)
    assert "learner and rollout on one H200 SXM 141 GB take" in line
    assert f"in a step of {most} micro-batches" in line
    change = fitting_overrides(cub, most)
    assert " ".join(change) + " would fit" in line
    # The change as a configuration of its own really fits.
    config = load_config(ROOT / "configs" / "cub.toml", [*GREEDY, *change])
    with planner.plan_inputs(config, cub.card, planner.assumed_rates(config, cub.card)) as changed:
        assert all(device.fits for device in assign_devices(config, changed.memories, cub.card, most))
    assert not fits_with(cub, most)
    assert fits_with(cub, most, change)

    small = replace(cub, card=CARDS["l40s"])
    assert fitting_overrides(small, most) == ()
    line, engine = capacity_warnings(planner.memory_plan(small), PLENTY)
    assert "use a card for each role, or a smaller model" in line
    assert "rollout.gpu_memory_utilization = 0.3 of a GPU of 47.7 GB leaves 0.0 GB for the KV cache" in engine


def test_an_object_store_that_is_too_small_names_the_size(tiny_checkpoint: Path) -> None:
    config = load_config(
        ROOT / "configs" / "birds.toml",
        [f"model.path={tiny_checkpoint}", "rollout.max_tokens=400", "rollout.max_model_len=4096",
         "data.batch_size=4000", "rollout.pairs_per_batch=4000", "data.birds.train_classes=1000",
         "runtime.object_store_mb=80"],
    )  # fmt: skip
    card = Card("made up", 1e12, 1e12, 1e12, 1e12, on_gpu=False)
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        filled = planner.memory_plan(plan_inputs)
        (line,) = capacity_warnings(filled, PLENTY)
        assert "set runtime.object_store_mb = " in line
        enough = int(line.rpartition(" ")[2])
        larger = config.model_copy(update={"runtime": config.runtime.model_copy(update={"object_store_mb": enough})})
        fixed = replace(filled, plan_inputs=replace(plan_inputs, work=replace(plan_inputs.work, config=larger)))
        assert list(capacity_warnings(fixed, PLENTY)) == []


def test_this_machines_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_limits(tmp_path / "not" / "yet", None)
    assert here.gpus == 0
    assert here.host > 0 and here.disk > 0
    config = load_config(ROOT / "configs" / "birds.toml")
    assert runs_on_this_machine(config)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not runs_on_this_machine(config)


def test_the_doctor_warns_and_says_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "saga_dist.estimate.capacity.machine_limits", lambda *_: MachineLimits(0, host=1 << 20, shm=0, disk=1000)
    )
    assert run_checks(None, [*FEW, "rollout.engine=transformers"], smoke=False) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " capacity: " in line]
    assert lines[0].startswith("ok   capacity: expected 1 x this processor: learner")
    assert [line[:15] for line in lines[1:]] == ["WARN capacity: "] * 2
    assert "of host memory, 1.05 MB are free" in lines[1]
    assert "1.00 kB are free" in lines[2]
