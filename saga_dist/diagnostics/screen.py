"""The oracle screen of a configuration ("world"): the largest gain of the MLLM's gradient over a tuned metric loss.

It compares five rows: the pre-trained tower; the best metric loss; the metric loss with the oracle's text, with its
attention targets, and with both. Every choice is made on validation classes: the step (early stopping), the pooling and
the learning rate. Only the chosen weights are evaluated on test classes. The tuning favours the baseline: the metric
loss tries every pooling and then every learning rate with the best pooling; a row with the oracle tries only two
settings, the best one of the metric loss and the one of the configuration file. Choices are made with the first seed
and kept for the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.sampling import training_sampler
from saga_dist.diagnostics.oracle import Oracle, train_step
from saga_dist.diagnostics.screen_configs import POOLINGS, RATE_FACTORS, ScreenSetting, World
from saga_dist.diagnostics.screen_results import ATTENTION, BOTH, METRIC, TEXT, ScreenRow, WorldResult
from saga_dist.errors import ConfigError
from saga_dist.retrieval.metrics import paired_test, recall_at_k
from saga_dist.runtime.build import build_learner, build_splits
from saga_dist.training.coordinator import ModelSelection
from saga_dist.training.evaluation import validation_recall

Report = Callable[[str], None]
"""Receives one line of progress."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """The weights of one training run at its best step by validation Recall@1."""

    config: RunConfig
    step: int
    validation: float
    """Recall@1 on validation classes, in [0, 1]."""
    weights: dict[str, Any]
    """State dict of the encoder."""


def screen_world(world: World, *, seeds: Sequence[int], report: Report = lambda line: None) -> WorldResult:
    """Trains and evaluates every row of the screen of one world.

    Args:
        world: the configuration to screen.
        seeds: seeds of batches, pooler and pairs, one run of each row per seed; tuning uses the first.
        report: receives lines of progress.

    Raises:
        ConfigError: the world has no validation classes, or its ``kl_layer`` or pooler does not allow alignment.
    """
    if world.setting.pooling == "mean":
        raise ConfigError(
            f"model.pooler = {world.config.model.pooler}",
            where=str(world.path),
            expected="attention: a mean has no weights to align",
        )
    return _Screen(world, tuple(seeds), report).run()


class _Screen:
    def __init__(self, world: World, seeds: tuple[int, ...], report: Report) -> None:
        self._world, self._seeds, self._report = world, seeds, report
        splits = build_splits(world.config.data, seed=seeds[0])
        assert splits.train.attributes_IA is not None
        self._oracle = Oracle(world.config, splits.train.attributes_IA)
        self._labels_I = splits.test.labels_I

    def run(self) -> WorldResult:
        config = self._world.config
        learner = build_learner(self._config(METRIC, self._world.setting, self._seeds[0]))
        before = learner.embed("test", pretrained=True)
        zero_shot = recall_at_k(before.values_IE, before.labels_I, ks=(1,)).recall[1]
        self._report(f"{self._world.name}: zero-shot {100 * zero_shot:.1f}")
        trials, best = self._tuned_metric_loss()
        rows, hits = {}, {}
        rows[METRIC], hits[METRIC] = self._row(METRIC, trials, best)
        for name in (TEXT, ATTENTION, BOTH):
            # Mean pooling has no weights over tokens to align, so only the text row can use it.
            settings = [setting for setting in (best, self._world.setting) if setting.pooling != "mean" or name == TEXT]
            trials = {setting: self._train(name, setting, self._seeds[0]) for setting in dict.fromkeys(settings)}
            row, hits[name] = self._row(name, trials, _best(trials))
            test = paired_test(hits[name], hits[METRIC], self._labels_I, seed=0)
            rows[name] = row.model_copy(update={"p_value": test.p_value})
        return WorldResult(
            world=self._world.name,
            digest=config.digest(),
            seeds=self._seeds,
            steps=config.run.steps,
            pairs_per_step=config.rollout.pairs_per_batch,
            num_queries=len(self._labels_I),
            num_classes=len(np.unique(self._labels_I)),
            zero_shot_recall_at_1=zero_shot,
            rows=rows,
        )

    def _tuned_metric_loss(self) -> tuple[dict[ScreenSetting, _Trained], ScreenSetting]:
        """Tunes the metric loss: every pooling at the world's learning rate, then every rate with the best pooling.

        Returns all trials and the best setting.
        """
        trials = {}
        for pooling in POOLINGS:
            setting = ScreenSetting(pooling, 1.0)
            trials[setting] = self._train(METRIC, setting, self._seeds[0])
        pooling = _best(trials).pooling
        for factor in RATE_FACTORS:
            setting = ScreenSetting(pooling, factor)
            if setting not in trials:
                trials[setting] = self._train(METRIC, setting, self._seeds[0])
        return trials, _best(trials)

    def _row(
        self, name: str, trials: dict[ScreenSetting, _Trained], chosen: ScreenSetting
    ) -> tuple[ScreenRow, np.ndarray]:
        """Returns the row of a chosen setting, and hits [I] in [0, 1].

        A hit is the share of seeds in which the nearest neighbour of a test image has its class.
        """
        runs = [trials[chosen], *(self._train(name, chosen, seed) for seed in self._seeds[1:])]
        recalls, hits = zip(*(self._on_test(run) for run in runs), strict=True)
        row = ScreenRow(
            setting=str(chosen),
            tried={str(setting): run.validation for setting, run in trials.items()},
            selected_steps=tuple(run.step for run in runs),
            validation_recall_at_1=tuple(run.validation for run in runs),
            recall_at_1=recalls,
        )
        self._report(f"{self._world.name}: {name}, {chosen}: {100 * row.mean:.1f}")
        return row, np.mean(hits, axis=0)

    def _config(self, name: str, setting: ScreenSetting, seed: int) -> RunConfig:
        objective = self._world.config.objective
        return self._world.varied(
            setting,
            lambda_lm=objective.lambda_lm if name in (TEXT, BOTH) else 0.0,
            lambda_kl=objective.lambda_kl if name in (ATTENTION, BOTH) else 0.0,
            seed=seed,
        )

    def _train(self, name: str, setting: ScreenSetting, seed: int) -> _Trained:
        """Trains one configuration and keeps the weights of its best step by validation classes."""
        config = self._config(name, setting, seed)
        learner = build_learner(config)
        sampler = training_sampler(config, learner.labels("train"))
        selection, weights = ModelSelection(), {}
        while learner.step < config.run.steps:
            train_step(learner, sampler, config, None if name == METRIC else self._oracle)
            due = learner.step % config.evaluation.every_steps == 0 or learner.step == config.run.steps
            if due and selection.consider(learner.step, validation_recall(learner)):
                weights = copy.deepcopy(learner.encoder.state_dict())
        self._report(
            f"{self._world.name}: {name}, {setting}, seed {seed}: validation {100 * selection.recall_at_1:.1f} "
            f"at step {selection.step}"
        )
        return _Trained(config, selection.step, selection.recall_at_1, weights)

    def _on_test(self, run: _Trained) -> tuple[float, np.ndarray]:
        """Returns Recall@1 of the chosen weights on the test classes, and float [I], 1 for each image that is a hit."""
        learner = build_learner(run.config)
        learner.encoder.load_state_dict(run.weights)
        embeddings = learner.embed("test")
        found = recall_at_k(embeddings.values_IE, embeddings.labels_I, ks=(1,))
        return found.recall[1], found.correct_at_1_I.astype(float)


def _best(trials: dict[ScreenSetting, _Trained]) -> ScreenSetting:
    """Returns the setting with the highest validation Recall@1; the first one in case of a tie."""
    return max(trials, key=lambda setting: trials[setting].validation)
