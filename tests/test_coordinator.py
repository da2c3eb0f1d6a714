"""The coordinator on a tiny real learner, real replay and scripted rollouts: one step, a whole run, stop and resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.assembly import build_family, build_learner, build_prompt, build_replay_worker, torch_dtype
from saga_dist.config import RunConfig, parse_config
from saga_dist.coordinator import Coordinator
from saga_dist.counters import counter_generator
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError, DataError, Interrupted, LearnerLost, TrainingError
from saga_dist.ledger import Ledger
from saga_dist.pools import SerialPool
from saga_dist.protocols import GradientHandle
from saga_dist.record import record_rollouts
from saga_dist.rollout_stream import RolloutStream
from saga_dist.types import EncoderTokens, Quarantined
from saga_dist.wire import read_recording
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.rollout import RolloutWorker


def make_config(model: Path, /, steps: int = 4, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "run": {"steps": steps},
        "data": {
            "layout": "birds",
            "image_size": 80,
            "batch_size": 8,
            "images_per_class": 2,
            "birds": {
                "train_classes": 4,
                "train_images_per_class": 3,
                "val_images_per_class": 2,
                "test_images_per_class": 2,
                "probe_images": 0,
            },
        },
        "prompt": {"vocabulary": "standin_birds"},
        "model": {"path": str(model), "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
        "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1},
        "rollout": {
            "engine": "transformers",
            "pairs_per_batch": 6,
            "group_size": 4,
            "contributing_groups": 3,
            "max_micro_batches": 3,
            "max_tokens": 200,
            "max_log_prob_gap": 1e9,  # a scripted engine knows nothing of the model
        },
        "checkpoint": {"every_steps": 1, "keep": 2},
        "evaluation": {"every_steps": 2},
        "runtime": {"kind": "serial"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return parse_config(tree, where="test")


def answer(verdict: str) -> str:
    return (
        '{"bird_1": {"bill": "red", "crown": "blue"}, "bird_2": {"bill": "gold", "crown": "white"}, '
        f'"differences": "bill differs", "confidence": "high", "reasoning": "So.", "same_species": "{verdict}"}}'
    )


def half_of_the_pairs_vary(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    """In pairs with an odd number one completion of four says yes; in the others all say no."""
    return answer("yes" if int(pair_id[-2:]) % 2 and completion == 0 else "no")


class ScriptedRuntime:
    """The serial runtime with a scripted engine in place of the MLLM's sampling."""

    def __init__(self, config: RunConfig, script: Callable[[str, int, EncoderTokens], str]) -> None:
        self._config = config
        family = build_family(config)
        tokenizer = family.load_tokenizer()
        worker = RolloutWorker(
            lambda: ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id),
            family=family,
            prompt=build_prompt(config),
            dtype=torch_dtype(config),
            advantage_epsilon=1e-4,
            deadline_s=60.0,
        )
        self._replay_worker = build_replay_worker(config)
        self.learner = build_learner(config)
        self.rollouts = SerialPool(
            lambda tasks: worker.rollout(tasks, [task.tokens for task in tasks]), lease=4, max_attempts=1
        )
        self.replays = SerialPool(
            lambda tasks: [
                GradientHandle.of(self._replay_worker.replay(task, task.tokens, task.behaviour)) for task in tasks
            ],
            lease=1,
            max_attempts=1,
        )

    def renew_learner(self, config: RunConfig) -> None:
        self.learner = build_learner(config)

    def revive_learner(self) -> None:
        self.learner = build_learner(self._config)

    def backbone_digest(self) -> str:
        return self._replay_worker.backbone_digest()

    def close(self) -> None:
        pass


def make_coordinator(
    config: RunConfig,
    run_dir: Path,
    script: Callable[[str, int, EncoderTokens], str] = half_of_the_pairs_vary,
    **arguments: Any,
) -> Coordinator:
    runtime = ScriptedRuntime(config, script)
    sampler = ClassBalancedSampler(
        runtime.learner.labels("train"), config.data.batch_size, config.data.images_per_class, seed=config.run.seed
    )
    run_dir.mkdir(exist_ok=True)
    return Coordinator(config, runtime, sampler, run_dir, **arguments)


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights_digest(run_dir: Path, step: int) -> str:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    content = b"".join((folder / name).read_bytes() for name in ("learner.safetensors", "optimizer.safetensors"))
    return hashlib.sha256(content).hexdigest()


def test_one_step_takes_the_first_contributing_groups_and_their_tokens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    coordinator = make_coordinator(make_config(tiny_checkpoint), tmp_path)
    digest = coordinator._runtime.backbone_digest()
    result = coordinator.train_step()
    assert result.step == 1
    groups = read_recording(tmp_path / "rollouts" / "step_000000.arrow")
    assert [group.pair.pair_id for group in groups] == [f"s000000.m0.p{number:02d}" for number in range(6)]
    contributing = [group for group in groups if group.contributes]
    assert [group.pair.pair_id[-1] for group in contributing] == ["1", "3", "5"]
    assert result.metrics["replay/tokens"] == sum(group.num_tokens for group in contributing)
    # Half of the pairs are same-class; "no" is right for the others.
    rewards = np.concatenate([group.rewards_G for group in groups])
    assert result.metrics["rollout/reward_mean"] == pytest.approx(rewards.mean())
    assert result.metrics["rollout/contributing_share"] == 0.5
    assert result.metrics["rollout/json_valid_share"] == 1.0
    assert result.metrics["loss/kl"] > 0
    assert result.metrics["gradient/grpo_at_tokens_norm"] > 0
    assert coordinator._runtime.backbone_digest() == digest


def test_recordings_hold_what_replay_made_of_the_groups_that_trained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = make_coordinator(make_config(tiny_checkpoint), tmp_path).train_step()
    groups = read_recording(tmp_path / "rollouts" / "step_000000.arrow")
    trained = [group for group in groups if group.replayed]
    assert [group.contributes for group in trained] == [True] * 3
    assert len(groups) > 3
    gaps = [
        replayed_T.astype(np.float64) - log_probs_T
        for group in trained
        for replayed_T, log_probs_T in zip(group.replayed, group.completions.log_probs, strict=True)
    ]
    lengths = [len(ids) for group in trained for ids in group.completions.token_ids]
    assert [len(gaps_T) for gaps_T in gaps] == lengths
    mean = np.abs(np.concatenate(gaps)).mean()
    assert result.metrics["replay/log_prob_gap_mean"] == pytest.approx(mean, rel=1e-5)


def test_further_micro_batches_until_enough_groups_contribute(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, rollout={"contributing_groups": 7})
    coordinator = make_coordinator(config, tmp_path)
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/groups"] == 18
    assert metrics["rollout/selected"] == 7


def test_step_without_a_contributing_group_trains_on_the_metric_loss(tiny_checkpoint: Path, tmp_path: Path) -> None:
    coordinator = make_coordinator(make_config(tiny_checkpoint), tmp_path, lambda *_: answer("no"))
    before = coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"].clone()
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/groups"] == 18  # every allowed micro-batch was tried
    assert metrics["rollout/selected"] == 0
    assert metrics["loss/grpo"] == 0
    assert not before.equal(coordinator._runtime.learner._state()["tower.model.merger.linear_fc2.weight"])


def test_four_steps_equal_two_interrupted_and_two_resumed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint)
    straight = make_coordinator(config, tmp_path / "straight")
    selection = straight.run()
    stopped = make_coordinator(config, tmp_path / "resumed", should_stop=lambda: stopped._runtime.learner.step == 2)
    with pytest.raises(Interrupted, match="stopped after step 2") as stop:
        stopped.run()
    assert stop.value.exit_code == 3
    resumed = make_coordinator(config, tmp_path / "resumed")
    assert resumed.run() == selection
    assert weights_digest(tmp_path / "resumed", 4) == weights_digest(tmp_path / "straight", 4)
    trained = [
        [
            {name: value for name, value in row.items() if not name.endswith(("_s", "idle_share"))}
            for row in rows(tmp_path / name)
        ]
        for name in ("straight", "resumed")
    ]
    assert trained[0] == trained[1]
    for step in range(4):
        recordings = [
            read_recording(tmp_path / name / "rollouts" / f"step_{step:06d}.arrow") for name in ("straight", "resumed")
        ]
        assert [group.completions.token_ids for group in recordings[0]] == [
            group.completions.token_ids for group in recordings[1]
        ]


def test_rows_after_the_resumed_step_are_rewritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=2, checkpoint={"every_steps": 1})
    make_coordinator(config, tmp_path).run()
    newest = tmp_path / "checkpoints" / "step_00000002"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss/d')  # a crash in the middle of a line
    make_coordinator(config, tmp_path).run()
    steps = [row["step"] for row in rows(tmp_path) if "loss/dml" in row]
    assert steps == [1, 2]


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint_costs_its_own_steps_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, checkpoint={"every_steps": 1, "keep": 3})
    selection = make_coordinator(config, tmp_path).run()
    digest, told = weights_digest(tmp_path, 4), len(rows(tmp_path))
    damage(tmp_path / "checkpoints" / "step_00000004" / "learner.safetensors")
    damage(tmp_path / "checkpoints" / "step_00000003" / "manifest.json")
    trained: list[int] = []
    assert make_coordinator(config, tmp_path, on_step=lambda result: trained.append(result.step)).run() == selection
    assert trained == [3, 4]
    assert weights_digest(tmp_path, 4) == digest
    assert len(rows(tmp_path)) == told  # rows of the lost steps were dropped and told again
    assert len(list((tmp_path / "checkpoints").glob("step_*.damaged-*"))) == 2


def test_without_a_valid_checkpoint_nothing_starts_afresh(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=1)
    make_coordinator(config, tmp_path).run()
    damage(tmp_path / "checkpoints" / "step_00000001" / "learner.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint is valid; .*learner\.safetensors: damaged.*; restore"):
        make_coordinator(config, tmp_path).run()


def failing_saves(coordinator: Coordinator, steps: set[int]) -> None:
    learner = coordinator._runtime.learner
    plain = learner.save

    def save(folder: Path) -> None:
        if learner.step in steps:
            raise OSError(28, "No space left on device")
        plain(folder)

    learner.save = save


def test_a_save_that_fails_ends_no_run_that_has_an_older_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=5)
    straight = make_coordinator(config, tmp_path / "straight")
    straight.run()
    coordinator = make_coordinator(config, tmp_path / "full")
    failing_saves(coordinator, {2, 3})
    selection = coordinator.run()
    assert weights_digest(tmp_path / "full", 5) == weights_digest(tmp_path / "straight", 5)
    failures = [
        (row["step"], row["checkpoint/failed"]) for row in rows(tmp_path / "full") if "checkpoint/failed" in row
    ]
    assert failures[-1] == (3, 1.0)
    assert {step for step, _ in failures} == {2, 3}
    assert selection.history == straight.selection.history
    assert selection.step not in {2, 3}, "weights that were not kept cannot be selected"
    coordinator.restore_selected()


def test_the_last_save_and_the_first_must_not_fail(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=3, checkpoint={"every_steps": 1, "keep": 2})
    for place, steps, kept in (("first", {1}, []), ("last", {3}, [1, 2])):
        coordinator = make_coordinator(config, tmp_path / place)
        failing_saves(coordinator, steps)
        with pytest.raises(CheckpointError, match="cannot write the checkpoint .No space left on device.; free space"):
            coordinator.run()
        assert coordinator._checkpoints.steps() == kept
    stopped = make_coordinator(config, tmp_path / "stopped", should_stop=lambda: stopped._runtime.learner.step == 2)
    failing_saves(stopped, {2})
    with pytest.raises(CheckpointError, match="step_00000002: cannot write the checkpoint"):
        stopped.run()
    make_coordinator(config, tmp_path / "stopped").run()  # the same command, with room again
    assert make_coordinator(config, tmp_path / "stopped")._checkpoints.newest().step == 3


def test_checkpoint_of_another_configuration_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    make_coordinator(make_config(tiny_checkpoint, steps=1), tmp_path).run()
    other = make_config(tiny_checkpoint, steps=1, optimizer={"lr_encoder": 1e-3})
    with pytest.raises(CheckpointError, match="another configuration"):
        make_coordinator(other, tmp_path).run()


def test_changed_data_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=1)
    make_coordinator(config, tmp_path).run()
    changed = make_coordinator(config, tmp_path)
    changed._runtime.learner.split_hash = lambda: "of other images"
    with pytest.raises(CheckpointError, match="data set has changed"):
        changed.run()


def test_selection_prefers_the_earlier_step_and_is_restored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, checkpoint={"keep": 1})
    coordinator = make_coordinator(config, tmp_path)
    selection = coordinator.run()
    best = max(recall for _, recall in selection.history)
    assert selection.step == min(step for step, recall in selection.history if recall == best)
    coordinator.restore_selected()
    assert coordinator._runtime.learner.step == selection.step


def test_sampling_seeds_depend_on_run_and_pair_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seeds: dict[int, list[int]] = {}
    for seed in (0, 1):
        config = make_config(tiny_checkpoint, run={"seed": seed, "steps": 1})
        make_coordinator(config, tmp_path / str(seed)).train_step()
        groups = read_recording(tmp_path / str(seed) / "rollouts" / "step_000000.arrow")
        seeds[seed] = [group.completions.sampling.seed for group in groups]
    assert len({*seeds[0], *seeds[1]}) == 12
    assert counter_generator("a").random() == counter_generator("a").random()


# ---------------------------------------------------------------------- asynchronous, lost learners, quarantine


def audit(config: RunConfig, run_dir: Path) -> dict[str, int]:
    labels = build_learner(config).labels("train")
    sampler = ClassBalancedSampler(labels, config.data.batch_size, config.data.images_per_class, seed=config.run.seed)
    return Ledger(run_dir / "ledger.jsonl").audit(sampler, config.run.steps, config.rollout.pairs_per_batch)


@pytest.mark.parametrize("staleness", [1, 2])
def test_rollouts_run_ahead_and_never_beyond_the_bound(staleness: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, rollout={"max_staleness": staleness})
    make_coordinator(config, tmp_path).run()
    steps = [row for row in rows(tmp_path) if "loss/dml" in row]
    ages = [[row[f"staleness/groups_at_{age}"] for age in range(staleness + 1)] for row in steps]
    # Step s trains on what the encoder of step s - S said, once there was one.
    expected = [[6.0 if age == min(step, staleness) else 0.0 for age in range(staleness + 1)] for step in range(4)]
    assert ages == expected
    assert [row["staleness/too_old_groups"] for row in steps] == [0.0] * 4
    for step in range(4):
        groups = read_recording(tmp_path / "rollouts" / f"step_{step:06d}.arrow")
        assert {group.completions.encoder_version for group in groups} == {max(0, step - staleness)}
    assert "importance/weight_p50" not in steps[0], "the first step is on-policy"
    assert 0.5 < steps[-1]["importance/weight_p50"] < 2
    assert steps[-1]["importance/weight_p0"] != 1
    assert audit(config, tmp_path) == {"trained": 12, "spare": 0, "uniform": 12, "quarantined": 0}


def test_a_synchronous_run_says_nothing_of_staleness_and_takes_the_same_pairs(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recorded = {}
    for staleness in (0, 1):
        config = make_config(tiny_checkpoint, rollout={"max_staleness": staleness})
        make_coordinator(config, tmp_path / str(staleness)).run()
        recorded[staleness] = [
            [(group.pair, group.completions.sampling) for group in read_recording(file)]
            for file in sorted((tmp_path / str(staleness) / "rollouts").glob("*.arrow"))
        ]
    assert recorded[0] == recorded[1], "running ahead changes the encoder that is asked, never the question"
    assert not [name for row in rows(tmp_path / "0") for name in row if name.startswith(("staleness", "importance"))]


def test_groups_that_are_too_old_are_generated_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, rollout={"max_staleness": 1})
    coordinator = make_coordinator(config, tmp_path)
    coordinator.train_step()
    runtime = coordinator._runtime
    runtime.learner._step = 3  # as if steps had passed while a group of step 1 was under way
    batch = coordinator._sampler.micro_batch(1, 0, 6)
    stale = batch.__class__(3, 0, batch.image_ids, batch.labels, batch.augmentation_seed, batch.pairs)
    stream = coordinator._source
    assert isinstance(stream, RolloutStream)
    stream._ahead[3, 0] = stream._ahead.pop((1, 0))
    groups = stream.take(stale, runtime.learner.encode(stale))
    assert [group.completions.encoder_version for group in groups] == [3] * 6
    assert [stream.off_policy(group, 3) for group in groups] == [(None, None)] * 6
    assert stream.end_step(3, 1)["staleness/too_old_groups"] == 6


def test_tokens_that_wait_for_later_steps_have_a_budget(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=9, rollout={"max_staleness": 8, "ahead_budget_mb": 1})
    coordinator = make_coordinator(config, tmp_path)
    stream = coordinator._source
    stream.run_ahead(0)
    one = next(iter(stream._ahead.values())).encoded.num_bytes
    assert one == 6 * 2 * 25 * 2 * 128 * 4, "pairs, images, tokens, levels, width, bytes"
    assert len(stream._ahead) == -(-(1 << 20) // one) == 4
    assert stream.end_step(9, 1)["staleness/held_back"] == 1


class LossyLearner:
    """A learner that is lost in some of its calls, before or after they took effect."""

    def __init__(self, inner: Any, losses: dict[tuple[str, int], int]) -> None:
        self._inner, self._losses = inner, losses

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        key = (name, self._inner.step)
        if self._losses.get(key, 0):
            self._losses[key] -= 1
            raise LearnerLost("its process died", where="learner")
        return value


@pytest.mark.parametrize("call", ["encode", "finish_step", "embed", "save"])
def test_a_lost_learner_is_replaced_and_the_result_is_the_same(
    call: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = make_config(tiny_checkpoint, steps=3, evaluation={"every_steps": 1})
    straight = make_coordinator(config, tmp_path / "straight")
    selection = straight.run()
    coordinator = make_coordinator(config, tmp_path / "lossy")
    runtime, losses = coordinator._runtime, {(call, 0): 1, (call, 2): 1, (call, 1): 1}

    def revive() -> None:
        runtime.learner = LossyLearner(build_learner(config), losses)

    runtime.revive_learner = revive
    revive()
    assert coordinator.run() == selection
    assert weights_digest(tmp_path / "lossy", 3) == weights_digest(tmp_path / "straight", 3)
    assert sum(losses.values()) <= 1, "the losses struck"
    assert audit(config, tmp_path / "lossy") == audit(config, tmp_path / "straight")


def test_a_learner_that_is_lost_again_and_again_ends_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, runtime={"kind": "serial", "max_learner_restarts": 2})
    coordinator = make_coordinator(config, tmp_path)
    runtime, losses = coordinator._runtime, {("finish_step", 1): 9}

    def revive() -> None:
        runtime.learner = LossyLearner(build_learner(config), losses)

    runtime.revive_learner = revive
    revive()
    with pytest.raises(TrainingError, match=r"lost 3 times without a new checkpoint in between; learner: its process"):
        coordinator.run()
    assert losses["finish_step", 1] == 6


class PoisonedPool:
    """A pool that sets some pairs aside."""

    def __init__(self, inner: Any, poisoned: set[str]) -> None:
        self._inner, self._poisoned = inner, poisoned
        self._failed: list[Quarantined] = []

    def submit(self, tasks: Any) -> None:
        names = [getattr(task, "group", task).pair.pair_id for task in tasks]
        self._failed += [Quarantined(name, "engine died", 2) for name in names if name in self._poisoned]
        self._inner.submit([task for task, name in zip(tasks, names, strict=True) if name not in self._poisoned])

    def collect(self) -> list[Any]:
        failed, self._failed = self._failed, []
        return failed or self._inner.collect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_poisoned_group_is_set_aside_and_the_step_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=1)
    coordinator = make_coordinator(config, tmp_path)
    coordinator._runtime.rollouts = PoisonedPool(coordinator._runtime.rollouts, {"s000000.m0.p01"})
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/quarantined"] == 1
    assert metrics["rollout/selected"] == 3, "a further micro-batch filled the buffer"
    assert audit(config, tmp_path)["quarantined"] == 1
    line = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert line["quarantined"] == {"s000000.m0.p01": "engine died"}


def test_what_cannot_be_replayed_leaves_the_denominator_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The step with a poisoned group equals the step of a buffer that never had it."""
    config = make_config(tiny_checkpoint, steps=1)
    poisoned = make_coordinator(config, tmp_path / "poisoned")
    poisoned._runtime.replays = PoisonedPool(poisoned._runtime.replays, {"s000000.m0.p03"})
    metrics = poisoned.train_step().metrics
    assert metrics["rollout/quarantined"] == 1
    assert metrics["rollout/selected"] == 2
    never = make_coordinator(
        config,
        tmp_path / "never",
        lambda pair_id, completion, tokens: (
            answer("no") if pair_id.endswith("p03") else half_of_the_pairs_vary(pair_id, completion, tokens)
        ),
    )
    other = never._config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_micro_batches": 1})})
    never._config = other
    assert never.train_step().metrics["loss/grpo"] == pytest.approx(metrics["loss/grpo"], rel=1e-6)


def test_a_stop_while_rollouts_run_saves_the_last_finished_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint)
    straight = make_coordinator(config, tmp_path / "straight")
    straight.run()
    asked: list[bool] = []

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        if pair_id.startswith("s000002"):
            asked.append(True)
        return half_of_the_pairs_vary(pair_id, completion, tokens)

    stopped = make_coordinator(config, tmp_path / "stopped", script, should_stop=lambda: bool(asked))
    with pytest.raises(Interrupted, match="stopped after step 2"):
        stopped.run()
    make_coordinator(config, tmp_path / "stopped").run()
    assert weights_digest(tmp_path / "stopped", 4) == weights_digest(tmp_path / "straight", 4)


def test_an_engine_that_disagrees_with_replay_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, rollout={"max_log_prob_gap": 0.05})
    with pytest.raises(TrainingError, match=r"start-up check: engine and replay .* differ by [\d.]+ nats per token"):
        make_coordinator(config, tmp_path).run()


def test_a_recording_trains_the_same_bits_without_an_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "config.json").write_text(config.model_dump_json())
    make_coordinator(config, tmp_path / "recorded").run()

    def silent(*_: object) -> str:
        raise AssertionError("nothing is generated")

    again = make_config(tiny_checkpoint, rollout={"recording": str(tmp_path / "recorded")})
    make_coordinator(again, tmp_path / "again", silent).run()
    assert weights_digest(tmp_path / "again", 4) == weights_digest(tmp_path / "recorded", 4)
    assert not again.needs_engine

    other = make_config(
        tiny_checkpoint, rollout={"recording": str(tmp_path / "recorded")}, optimizer={"lr_encoder": 1e-3}
    )
    make_coordinator(other, tmp_path / "other", silent).run()
    steps = [row for row in rows(tmp_path / "other") if "loss/dml" in row]
    assert all("importance/weight_p50" in row for row in steps), "off-policy from the first step on"
    assert audit(other, tmp_path / "other")["trained"] == 12

    with pytest.raises(DataError, match=r"step 4 was not recorded; set run.steps = 4"):
        make_coordinator(
            make_config(tiny_checkpoint, steps=5, rollout={"recording": str(tmp_path / "recorded")}),
            tmp_path / "long",
            silent,
        ).run()


def test_a_recording_of_other_pairs_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=1)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "config.json").write_text(config.model_dump_json())
    make_coordinator(config, tmp_path / "recorded").run()
    other = make_config(tiny_checkpoint, run={"seed": 1, "steps": 1}, rollout={"recording": str(tmp_path / "recorded")})
    with pytest.raises(DataError, match=r"pair s000000.m0.p00 has images .* use the data, seed and batches"):
        make_coordinator(other, tmp_path / "other").run()


def test_only_rolling_out_records_every_step_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = make_config(tiny_checkpoint, steps=2)
    runtime = ScriptedRuntime(config, half_of_the_pairs_vary)
    assert record_rollouts(config, runtime, tmp_path) == 2
    assert record_rollouts(config, runtime, tmp_path) == 0, "the same command goes on"
    for step in range(2):
        groups = read_recording(tmp_path / "rollouts" / f"step_{step:06d}.arrow")
        assert [group.pair_id for group in groups] == [f"s{step:06d}.m0.p{number:02d}" for number in range(6)]
        assert {group.completions.encoder_version for group in groups} == {0}
    assert runtime.learner.step == 0
