"""Rollouts of further micro-batches that start before their turn: the same results, less waiting, no surplus work."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.config import RunConfig
from saga_dist.errors import LearnerLost
from saga_dist.runtime.build import build_learner
from saga_dist.training.contribution_rate import RECENT_GROUPS, ContributionRate
from saga_dist.training.coordinator import Coordinator
from saga_dist.training.rollout_only import record_rollouts
from saga_dist.wire import read_recording

OF_THE_CLOCK = ("step/", "learner/idle_share", "rollout/tokens_per_s")
OF_EARLY_STARTS = ("rollout/early_groups", "rollout/cancelled_groups")


class ThreadedPool:
    """A pool whose tasks run in a thread as soon as they are submitted, as those of a Ray pool do in processes."""

    runs_in_background = True

    def __init__(self, run: Any) -> None:
        self._run, self._thread = run, ThreadPoolExecutor(1)
        self._pending: dict[str, Future[Any]] = {}
        self.submitted: list[str] = []
        """Ids of all pairs, in order."""
        self.cancelled: list[str] = []

    def submit(self, tasks: Sequence[Any]) -> None:
        for task in tasks:
            assert task.pair_id not in self._pending
            self.submitted.append(task.pair_id)
            self._pending[task.pair_id] = self._thread.submit(self._run, [task])

    def collect(self) -> list[Any]:
        if not self._pending:
            return []
        done, _ = wait(self._pending.values(), return_when=FIRST_COMPLETED)
        finished = [pair_id for pair_id, future in self._pending.items() if future in done]
        return [self._pending.pop(pair_id).result()[0] for pair_id in finished]

    def cancel(self, pair_ids: Collection[str]) -> None:
        self.cancelled += pair_ids
        for pair_id in pair_ids:
            if (future := self._pending.pop(pair_id, None)) is not None:
                future.cancel()

    def forget(self) -> None:
        self.cancel(list(self._pending))

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def in_background(coordinator: Coordinator) -> ThreadedPool:
    """Replaces the serial rollout pool of a coordinator."""
    runtime: Any = coordinator._runtime
    runtime.rollouts = ThreadedPool(runtime.rollouts._run)
    return runtime.rollouts


@pytest.fixture
def few_then_many(scene: Any) -> Any:
    """Returns a script by which one pair of six contributes in step 1, and half of them in later steps."""

    def script(pair_id: str, completion: int, tokens: Any) -> str:
        if pair_id.startswith("s000001") and not pair_id.endswith("p01"):
            return scene.answer("no")
        return scene.half_of_the_pairs_vary(pair_id, completion, tokens)

    return script


def without(row: dict[str, float], *prefixes: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith(prefixes)}


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.integration
def test_early_starts_change_no_bit(scene: Any, few_then_many: Any, tmp_path: Path) -> None:
    augmented = {"flip": True, "shift": 0.1, "crop": 0.5, "color_jitter": 0.2}
    pools: dict[bool, ThreadedPool] = {}
    for early in (True, False):
        config = scene.config(rollout={"early_start": early}, data=augmented)
        coordinator = scene.coordinator(config, tmp_path / str(early), few_then_many)
        pools[early] = in_background(coordinator)
        coordinator.run()
    on, off = tmp_path / "True", tmp_path / "False"
    assert scene.weights_digest(on, 4) == scene.weights_digest(off, 4)
    for mine, theirs in zip(scene.rows(on), scene.rows(off), strict=True):
        assert without(mine, *OF_THE_CLOCK, *OF_EARLY_STARTS) == without(theirs, *OF_THE_CLOCK, *OF_EARLY_STARTS)
    for step in range(1, 5):
        recorded = [read_recording(folder / "rollouts" / f"step_{step:06d}.arrow") for folder in (on, off)]
        assert [group.completions.texts for group in recorded[0]] == [group.completions.texts for group in recorded[1]]
        for mine, theirs in zip(*recorded, strict=True):
            np.testing.assert_array_equal(
                np.concatenate(mine.replayed or ([],)), np.concatenate(theirs.replayed or ([],))
            )
    # One group of six contributed in step 1, which used all three micro-batches; so three are started in step 2.
    steps = [row for row in scene.rows(on) if "loss/dml" in row]
    assert [row["rollout/groups"] for row in steps] == [18, 6, 6, 6]
    assert steps[1]["rollout/early_groups"] == steps[1]["rollout/cancelled_groups"] == 12
    assert not any(row[name] for row in scene.rows(off) if "loss/dml" in row for name in OF_EARLY_STARTS)
    assert not pools[False].cancelled


@pytest.mark.integration
def test_cancelled_groups_are_in_the_ledger(scene: Any, few_then_many: Any, tmp_path: Path) -> None:
    config = scene.config(steps=2)
    coordinator = scene.coordinator(config, tmp_path, few_then_many)
    pool, runtime = in_background(coordinator), coordinator._runtime
    submit, before_replay = runtime.replays.submit, []

    def listen(tasks: Sequence[Any]) -> None:
        before_replay.append(len(pool.cancelled))
        submit(tasks)

    runtime.replays.submit = listen
    coordinator.run()
    further = [f"s000002.m{index}.p{number:02d}" for index in (1, 2) for number in range(6)]
    assert [row["cancelled"] for row in ledger(tmp_path)] == [[], further]
    assert pool.cancelled == further
    assert before_replay[-2:] == [0, 12], "workers are free while the learner replays"
    assert pool.num_pending == 0
    counts = {"trained": 6, "surplus": 0, "zero_variance": 18, "quarantined": 0, "cancelled": 12}
    assert scene.audit(config, tmp_path) == counts


def test_the_first_micro_batch_is_submitted_first(scene: Any, tmp_path: Path) -> None:
    """Half of six pairs contribute, so five groups take two micro-batches: the second is behind the first."""
    coordinator = scene.coordinator(scene.config(rollout={"contributing_groups": 5}), tmp_path)
    pool = in_background(coordinator)
    assert coordinator.train_step().metrics["rollout/early_groups"] == 0, "no rate is known"
    pool.submitted.clear()
    metrics = coordinator.train_step().metrics
    assert pool.submitted == [f"s000002.m{index}.p{number:02d}" for index in (0, 1) for number in range(6)]
    assert (metrics["rollout/early_groups"], metrics["rollout/cancelled_groups"]) == (6, 0)


def test_a_step_that_is_likely_filled_starts_nothing_early(scene: Any, tmp_path: Path) -> None:
    """Half of six pairs contribute, so three groups take one micro-batch."""
    coordinator = scene.coordinator(scene.config(), tmp_path)
    pool = in_background(coordinator)
    assert [coordinator.train_step().metrics["rollout/early_groups"] for _ in range(2)] == [0, 0]
    assert len(pool.submitted) == 12


def test_what_has_contributed_already_counts(scene: Any, tmp_path: Path) -> None:
    """Nine groups take three micro-batches; the second one finds six missing, which it and the started third have."""
    coordinator = scene.coordinator(scene.config(rollout={"contributing_groups": 9, "max_micro_batches": 6}), tmp_path)
    in_background(coordinator)
    coordinator.train_step()
    metrics = coordinator.train_step().metrics
    assert (metrics["rollout/groups"], metrics["rollout/early_groups"]) == (18, 12)
    assert metrics["rollout/cancelled_groups"] == 0


@pytest.mark.parametrize(
    ("rollout", "num_batches"),
    [({"max_micro_batches": 6, "ahead_budget_mb": 1}, 4), ({"max_micro_batches": 3}, 3)],
    ids=["budget", "limit"],
)
def test_early_starts_have_a_budget_and_a_limit(
    rollout: dict[str, int], num_batches: int, scene: Any, tmp_path: Path
) -> None:
    """The tokens of a micro-batch take 300 kB, so the fourth one fills the budget of 1 MiB; no group contributes."""
    coordinator = scene.coordinator(scene.config(rollout=rollout), tmp_path, lambda *_: scene.answer("no"))
    pool = in_background(coordinator)
    coordinator.train_step()
    pool.submitted.clear()
    source: Any = coordinator._source
    batch = coordinator._sampler.micro_batch(1, 0, 6)
    source.start(batch, coordinator._runtime.learner.encode(batch))
    assert len(pool.submitted) == 6 * num_batches
    assert source.end_step(1, 1)["rollout/early_groups"] == 6 * (num_batches - 1)
    pool.forget()
    source.forget()
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/groups"] == 6 * rollout["max_micro_batches"]
    assert metrics["rollout/cancelled_groups"] == 0, "no micro-batch beyond the last one is started"


@pytest.mark.parametrize(("staleness", "early"), [(0, 6), (1, 0)])
def test_only_synchronous_steps_start_early(staleness: int, early: int, scene: Any, tmp_path: Path) -> None:
    """Nine groups take three micro-batches, so the second one would start the third one."""
    rollout = {"contributing_groups": 9, "max_staleness": staleness}
    coordinator = scene.coordinator(scene.config(rollout=rollout), tmp_path)
    in_background(coordinator)
    assert coordinator.train_step().metrics["rollout/early_groups"] == early


def test_a_pool_that_runs_in_the_caller_does_no_surplus_work(scene: Any, few_then_many: Any, tmp_path: Path) -> None:
    asked: set[str] = set()

    def script(pair_id: str, completion: int, tokens: Any) -> str:
        asked.add(pair_id)
        return few_then_many(pair_id, completion, tokens)

    coordinator = scene.coordinator(scene.config(), tmp_path, script)
    metrics = [coordinator.train_step().metrics for _ in range(2)]
    assert len(asked) == 18 + 6
    assert [row["rollout/early_groups"] for row in metrics] == [0, 0]


def test_prefetched_groups_that_a_step_does_not_need_are_cancelled(
    scene: Any, few_then_many: Any, tmp_path: Path
) -> None:
    asked: list[str] = []

    def script(pair_id: str, completion: int, tokens: Any) -> str:
        if completion == 0:
            asked.append(pair_id)
        return few_then_many(pair_id, completion, tokens)

    config = scene.config(steps=3, rollout={"max_staleness": 1})
    coordinator = scene.coordinator(config, tmp_path, script)
    coordinator.run()
    # Step 1 used three micro-batches, so step 2 starts three of its own and three of step 3; each step uses one.
    cancelled = [row["cancelled"] for row in ledger(tmp_path)]
    assert [len(pairs) for pairs in cancelled] == [0, 12, 12]
    assert [row["staleness/surplus_groups"] for row in scene.rows(tmp_path) if "loss/dml" in row] == [0, 12, 12]
    # Leases have four groups, so the second one of step 3 ends with two of the next micro-batch.
    assert not coordinator._source._finished, "their groups are dropped"
    assert sorted({*asked} & {*cancelled[1], *cancelled[2]}) == ["s000003.m1.p00", "s000003.m1.p01"]
    assert scene.audit(config, tmp_path)["cancelled"] == 24


class LostWhileStartingEarly:
    """A learner whose process dies in its first call of ``encode_no_grad`` in the second step."""

    def __init__(self, inner: Any, strikes: Iterator[bool]) -> None:
        self._inner, self._strikes = inner, strikes

    def encode_no_grad(self, batch: Any) -> Any:
        if batch.step == 1 and batch.index == 2 and next(self._strikes):
            raise LearnerLost("its process died", where="learner")
        return self._inner.encode_no_grad(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.integration
def test_a_learner_lost_during_an_early_start_changes_no_bit(scene: Any, few_then_many: Any, tmp_path: Path) -> None:
    config: RunConfig = scene.config(steps=2)
    straight = scene.coordinator(config, tmp_path / "straight", few_then_many)
    straight.run()
    coordinator = scene.coordinator(config, tmp_path / "lossy", few_then_many)
    pool, strikes = in_background(coordinator), iter([True, False])
    runtime: Any = coordinator._runtime

    def revive() -> None:
        runtime.learner = LostWhileStartingEarly(build_learner(config), strikes)

    runtime.restart_learner = revive
    revive()
    coordinator.run()
    assert not next(strikes, False), "the loss struck"
    assert scene.weights_digest(tmp_path / "lossy", 2) == scene.weights_digest(tmp_path / "straight", 2)
    assert scene.audit(config, tmp_path / "lossy")["trained"] == 6
    assert pool.num_pending == 0


def test_recording_without_training_starts_early_and_generates_each_group_once(
    scene: Any, few_then_many: Any, tmp_path: Path
) -> None:
    config = scene.config(steps=3)
    recorded = {}
    for early in (True, False):
        runtime = scene.runtime(config, few_then_many)
        runtime.rollouts = pool = ThreadedPool(runtime.rollouts._run)
        own = config.model_copy(update={"rollout": config.rollout.model_copy(update={"early_start": early})})
        folder = tmp_path / str(early)
        folder.mkdir()
        assert record_rollouts(own, runtime, folder) == 3
        recorded[early] = [
            [group.completions.texts for group in read_recording(file)]
            for file in sorted((folder / "rollouts").iterdir())
        ]
        assert len(pool.submitted) == len({*pool.submitted}), "no group is generated twice"
        assert bool(pool.cancelled) == early
    assert recorded[True] == recorded[False]
    assert [len(groups) for groups in recorded[True]] == [18, 6, 6]


@pytest.mark.parametrize(
    ("seen", "missing", "pairs", "most", "expected"),
    [
        ([], 8, 16, 8, 1),
        ([1, 0, 0, 0], 8, 16, 8, 2),
        ([1, 0, 0, 0], 9, 16, 8, 3),
        ([1, 0, 0, 0], 8, 8, 8, 4),
        ([1, 0, 0, 0], 8, 8, 3, 3),
        ([1, 0, 0], 8, 6, 8, 4),
        ([1, 1, 1, 1], 8, 8, 8, 1),
        ([1, 1, 1, 1], 9, 8, 8, 2),
        ([0, 0], 8, 16, 5, 5),
    ],
)
def test_likely_micro_batches_by_hand(seen: list[int], missing: int, pairs: int, most: int, expected: int) -> None:
    assert rate_of(seen).likely_batches(missing, pairs_per_batch=pairs, most=most) == expected


def test_the_contribution_rate_forgets_old_groups() -> None:
    rate = rate_of([1] * RECENT_GROUPS)
    assert rate.likely_batches(8, pairs_per_batch=8, most=8) == 1
    rate.add(groups_of([0] * (RECENT_GROUPS * 3 // 4)))
    assert rate.likely_batches(8, pairs_per_batch=8, most=8) == 4, "a quarter of the recent groups"


def groups_of(seen: list[int]) -> list[Any]:
    return [type("Group", (), {"contributes": bool(one)}) for one in seen]


def rate_of(seen: list[int]) -> ContributionRate:
    rate = ContributionRate()
    rate.add(groups_of(seen))
    return rate
