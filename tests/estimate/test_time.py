"""Seconds, divisions and saturation from made-up rates, checked by hand and by simulation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.estimate import planner
from saga_dist.estimate.operations import OPTIMIZER_BYTES, encoder_backward, encoder_forward
from saga_dist.estimate.placement import CUDA_CONTEXT_BYTES, SLACK, assign_devices, max_groups
from saga_dist.estimate.rates import CARDS, Card, Rate, Rates, card_rates
from saga_dist.estimate.sampling import dynamic_sampling
from saga_dist.estimate.scaling import best_plan, saturations
from saga_dist.estimate.steps import Allocation, Workload, step_time

ROOT = Path(__file__).resolve().parents[2]
BIRDS = ROOT / "configs" / "birds.toml"
RATES = Rates(
    encoder=Rate(1e9, "made up"),
    backward=Rate(2e9, "made up"),
    replay=Rate(3e9, "made up"),
    prefill=Rate(4e9, "made up"),
    decode=Rate(5e9, "made up"),
    decode_operations=Rate(6e9, "made up"),
    engine_step=Rate(0.007, "made up"),
    update=Rate(8e8, "made up"),
    link=Rate(9e7, "made up"),
    encode_overhead=Rate(0.5, "made up"),
)
SMALL = Card("made up", 2e8, 1e12, 1e11, 1e10)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[planner.PlanInputs]:
    """Birds with a tiny model, ten groups of four completions, two of three of them contribute."""
    from saga_dist.standin.checkpoint import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=0)
    config = load_config(
        BIRDS,
        [f"model.path={folder}", "rollout.pairs_per_batch=10", "rollout.contributing_groups=6", "rollout.group_size=4"],
    )
    rate_source = planner.RateSource(RATES, {"contributing_share": 2 / 3, "completion_tokens": 30.0}, "made up")
    with planner.plan_inputs(config, SMALL, rate_source) as plan_inputs:
        yield plan_inputs


def test_seconds_by_hand(here: planner.PlanInputs) -> None:
    work = here.work
    work = replace(work, dynamic_sampling=replace(work.dynamic_sampling, micro_batches_mean=1.5, trained_groups=6.0))
    tower, group, trainable = work.shape.tower, work.group, work.learner.trainable.params
    alone = step_time(work, Allocation(1, 1, 0))
    assert alone.encode == pytest.approx(1.5 * 64 * encoder_forward(tower) / 1e9)
    backward = 1.5 * 64 * encoder_backward(tower, checkpointing=False) / 2e9
    assert alone.update == pytest.approx(backward + OPTIMIZER_BYTES * trainable / 8e8)
    assert alone.replay == pytest.approx(6 * (group.replay_forward + group.replay_backward) / 3e9)
    decoder = work.shape.decoder
    read = 4 * (decoder.layer_matmul_params + decoder.output_matmul_params) + 40 * (
        work.token_counts.prompt + 15
    ) * decoder.kv_bytes(4)
    one_step = max(read / 5e9, 40 * (group.decode / 120) / 6e9) + 0.007
    assert alone.rollout == pytest.approx(1.5 * (10 * group.prefill / 4e9 + 30 * one_step))
    assert alone.sync == alone.encode + alone.rollout + alone.replay + alone.update

    shared_out = step_time(work, Allocation(2, 3, 4))
    assert shared_out.encode == pytest.approx(alone.encode / 2)
    assert shared_out.replay == pytest.approx(alone.replay / 3)  # six groups on four workers: two on some
    travelling = 2 * 4 * trainable / 2 / 9e7
    assert shared_out.update == pytest.approx(backward / 2 + OPTIMIZER_BYTES * trainable / 8e8 + travelling)
    learner = shared_out.encode_no_grad + shared_out.encode + shared_out.stale_replay + shared_out.update
    assert shared_out.overlapped == max(shared_out.rollout, learner)
    assert step_time(work, Allocation(1, 1, 0, shared=True)).overlapped > alone.sync


def changed(work: Workload, section: str, **values: object) -> Workload:
    """The workload with other settings in one section of its configuration."""
    part = getattr(work.config, section).model_copy(update=values)
    return replace(work, config=work.config.model_copy(update={section: part}))


def test_images_are_read_by_threads_while_the_step_runs_or_before_it_goes_on(here: planner.PlanInputs) -> None:
    """A micro-batch takes half a second of one core; a step has 1.5 of them."""
    work = replace(here.work, dynamic_sampling=replace(here.work.dynamic_sampling, micro_batches_mean=1.5))
    alone, two_threads = Allocation(1, 1, 0), step_time(work, Allocation(1, 1, 0))
    assert two_threads.reading == pytest.approx(1.5 * 0.5 / 2)
    by_itself = step_time(changed(work, "data", decode_threads=0), alone)
    assert by_itself.reading == 0
    assert by_itself.encode == pytest.approx(two_threads.encode + 1.5 * 0.5)
    assert step_time(work, Allocation(2, 1, 0)).reading == pytest.approx(1.5 * 0.5 / 2 / 2), "each has half of them"
    slow = replace(work, rates=replace(RATES, encode_overhead=Rate(1e4, "made up")))
    for seconds in (step_time(slow, alone).sync, step_time(slow, alone).overlapped):
        assert seconds == pytest.approx(1.5 * 1e4 / 2), "a step is not faster than its images are read"


def test_a_batch_decodes_until_its_longest_completion_ends(here: planner.PlanInputs) -> None:
    """Ten groups of four completions of 30 tokens in the mean; the longest has 60, so that half of them run."""
    sampling = replace(here.work.dynamic_sampling, micro_batches_mean=1.0)
    rates = replace(RATES, longest=Rate(2.0, "made up"), decode_operations=Rate(1e30, "made up"))
    work = replace(here.work, dynamic_sampling=sampling, rates=rates)
    decoder, prompt, prefill = work.shape.decoder, work.token_counts.prompt, 10 * work.group.prefill / 4e9

    def seconds(steps: float, mean_rows: float) -> float:
        weights = 4 * (decoder.layer_matmul_params + decoder.output_matmul_params)
        return steps * ((weights + mean_rows * (prompt + 15) * decoder.kv_bytes(4)) / 5e9 + 0.007)

    def rollout(work: Workload) -> float:
        return step_time(work, Allocation(1, 1, 0)).rollout - prefill

    assert rollout(work) == pytest.approx(seconds(60, 20))
    limited = changed(work, "rollout", max_tokens=45)
    assert rollout(limited) == pytest.approx(seconds(45, 40 * 30 / 45))
    narrow = changed(work, "rollout", groups_per_lease=4)  # 16 completions at a time: three rounds
    apart = changed(narrow, "rollout", continuous_feeding=False)
    assert rollout(apart) == pytest.approx(seconds(180, 1200 / 180))
    fed = changed(changed(narrow, "runtime", kind="ray"), "rollout", engine="vllm")
    assert rollout(fed) == pytest.approx(seconds(120, 10)), "only the last round waits for its longest"


def test_measured_tokens_replace_the_engines_rates(here: planner.PlanInputs) -> None:
    work = replace(here.work, rates=replace(RATES, rollout_tokens=Rate(1000.0, "made up")))
    work = replace(work, dynamic_sampling=replace(work.dynamic_sampling, micro_batches_mean=1.0))
    assert step_time(work, Allocation(1, 1, 0)).rollout == pytest.approx(10 * 4 * 30 / 1000)
    assert step_time(work, Allocation(1, 4, 0)).rollout == pytest.approx(3 * 4 * 30 / 1000)


@pytest.mark.parametrize(("share", "pairs", "wanted", "most"), [(0.5, 16, 8, 8), (0.2, 16, 8, 4), (0.9, 48, 24, 1)])
def test_micro_batches_are_those_of_a_simulation(share: float, pairs: int, wanted: int, most: int) -> None:
    config: RunConfig = load_config(
        BIRDS,
        [
            f"rollout.pairs_per_batch={pairs}",
            f"rollout.contributing_groups={wanted}",
            f"rollout.max_micro_batches={most}",
        ],
    )
    found = dynamic_sampling(config, share, "made up")
    drawn, counts = random.Random(0), []
    for _ in range(4000):
        hits = batches = 0
        while hits < wanted and batches < most:
            hits += sum(drawn.random() < share for _ in range(pairs))
            batches += 1
        counts.append(batches)
    assert found.micro_batches_mean == pytest.approx(sum(counts) / len(counts), rel=0.03)
    assert sum(count <= found.micro_batches_p99 for count in counts) / len(counts) >= 0.98
    assert found.micro_batches_max == most


def test_without_rollouts_there_is_nothing_to_sample() -> None:
    found = dynamic_sampling(load_config(BIRDS, ["objective.lambda_lm=0", "objective.lambda_kl=0"]))
    assert (found.micro_batches_mean, found.trained_groups) == (1.0, 0.0)


def test_roles_saturate_at_pairs_and_groups(here: planner.PlanInputs) -> None:
    found = {one.role: one for one in saturations(here.work)}
    assert found["rollout"].workers == 10
    assert found["replay"].workers == 6
    more = step_time(here.work, Allocation(1, 20, 20))
    assert more.rollout == pytest.approx(found["rollout"].seconds)
    assert more.replay == pytest.approx(found["replay"].seconds)


def test_the_best_division_is_no_slower_than_any_other(here: planner.PlanInputs) -> None:
    large = replace(SMALL, memory=1e12)
    for gpus in (2, 5, 9):
        for overlapped in (False, True):
            plan = best_plan(here.work, large, here.replay, gpus, overlapped=overlapped)
            assert plan is not None and plan.allocation.gpus <= gpus
            for learners in (1, 2, 4, 8):
                for replays in range(7):
                    rollouts = gpus - learners - replays
                    if rollouts < 1 or (learners > 1 and not replays):
                        continue
                    time = step_time(here.work, Allocation(learners, rollouts, replays))
                    assert plan.seconds <= 1.021 * (time.overlapped if overlapped else time.sync)
            assert plan.hours == pytest.approx(40 * plan.seconds / 3600)
            assert plan.cost(2.0) == pytest.approx(2 * gpus * plan.hours)


def test_no_division_where_a_role_fits_no_card(here: planner.PlanInputs) -> None:
    assert best_plan(here.work, replace(SMALL, memory=1e7), here.replay, 8, overlapped=False) is None


def test_actors_share_cards_as_ray_places_them(here: planner.PlanInputs) -> None:
    def devices(*overrides: str) -> list[tuple[int, tuple[str, ...]]]:
        config = load_config(BIRDS, ["rollout.engine=vllm", *overrides])
        memories = replace(here.memories, replay=here.replay if config.replay.workers else None)
        placed = assign_devices(config, memories, SMALL, 1)
        return [(device.count, tuple(role for role, _ in device.actors)) for device in placed]

    assert devices("runtime.learner_num_gpus=0.7", "rollout.num_gpus=0.3") == [(1, ("learner", "rollout"))]
    assert devices("runtime.learner_num_gpus=1", "rollout.num_gpus=1", "rollout.workers=3") == [
        (1, ("learner",)),
        (3, ("rollout",)),
    ]
    assert devices(
        "runtime.learner_num_gpus=0.5", "rollout.num_gpus=0.5", "rollout.workers=2", "replay.workers=1",
        "replay.num_gpus=2",
    ) == [(2, ("replay",)), (1, ("learner", "rollout")), (1, ("rollout",))]  # fmt: skip


def test_the_largest_k_is_the_last_that_fits(here: planner.PlanInputs) -> None:
    config = load_config(BIRDS, ["runtime.learner_num_gpus=1", "rollout.num_gpus=1", "rollout.pairs_per_batch=10"])
    learner = here.memories.learner
    room = learner.peak(3.0) * SLACK + CUDA_CONTEXT_BYTES + 1000
    card = replace(SMALL, memory=room)
    assert max_groups(config, here.memories, card, here.work.dynamic_sampling) == int(3 * 10 * 2 / 3)
    assert max_groups(config, here.memories, replace(card, memory=1e6), here.work.dynamic_sampling) == 0


def test_a_data_sheet_is_named_with_its_assumption() -> None:
    rates = card_rates(CARDS["h100"], images=64)
    assert rates.replay.value == pytest.approx(989e12 * 0.4)
    assert "989 TFLOP/s x 40% (assumed)" in rates.replay.source
    assert "3,350 GB/s" in rates.decode.source
