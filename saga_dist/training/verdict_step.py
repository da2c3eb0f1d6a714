"""One optimizer step with the verdict loss in place of GRPO (``objective.signal = "verdict"``): no rollouts.

    sampler ──► one micro-batch ──► learner.encode ──► replay pool, one task per pair ──► learner.finish_step

Every pair has a gradient, so there is no dynamic sampling: a step is one micro-batch, all of whose pairs train, and
L_verdict is the mean over them. Half of them are same-class, so both verdicts weigh the same. This is a baseline of
ours, not of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.metrics.log import Stopwatch
from saga_dist.protocols import EncodedBatch, GradientHandle, Runtime
from saga_dist.training.expected_batches import announce_next
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.training.step_metrics import pool_metrics, time_metrics
from saga_dist.types import ImagePair, MicroBatch, Quarantined, StepResult, VerdictTask
from saga_dist.workers.serial_pool import run_tasks


class VerdictStep:
    """Takes the optimizer steps of a run that trains on verdicts.

    Args:
        config: configuration of the run.
        runtime: learner and replay pool; its rollout pool is not used.
        sampler: the class-balanced stream of micro-batches.
        ledger: accounts for every pair.
    """

    def __init__(self, config: RunConfig, runtime: Runtime, sampler: ClassBalancedSampler, ledger: PairLedger) -> None:
        self._config, self._runtime, self._sampler, self._ledger = config, runtime, sampler, ledger

    def take(self) -> StepResult:
        """Takes one optimizer step: encode, replay the verdict of every pair, update."""
        clock = Stopwatch()
        batch = self._sampler.micro_batch(self._runtime.learner.step, 0, self._config.rollout.pairs_per_batch)
        with clock.phase("encode"):
            encoded = self._runtime.learner.encode(batch)
            announce_next(self._config, self._runtime.learner, self._sampler, batch)
        with clock.phase("replay"):
            gradients, quarantined = self._replay(batch, encoded)
        with clock.phase("update"):
            result = self._runtime.learner.finish_step([gradient.handle for gradient in gradients])
        trained = [gradient.pair_id for gradient in gradients]
        self._ledger.append(result.step, 1, {"trained": trained}, quarantined)
        metrics = {
            **result.metrics,
            **pool_metrics(self._runtime),
            **verdict_metrics(batch.pairs, gradients),
            **time_metrics(clock, replay_is_remote=self._config.replay.workers > 0),
            "verdict/quarantined": float(len(quarantined)),
        }
        return replace(result, metrics=metrics)

    def _replay(self, batch: MicroBatch, encoded: EncodedBatch) -> tuple[list[GradientHandle], list[Quarantined]]:
        """Returns the gradient of every pair, in order, and the pairs on which replay workers failed.

        The number of pairs is the denominator of each gradient, so after a failure the others are replayed again.
        """
        tokens = {pair.pair_id: handle for pair, handle in zip(batch.pairs, encoded.handles, strict=True)}
        quarantined: dict[str, Quarantined] = {}
        while True:
            pairs = [pair for pair in batch.pairs if pair.pair_id not in quarantined]
            tasks = [VerdictTask(pair, tokens[pair.pair_id], len(pairs)) for pair in pairs]
            outcomes = run_tasks(self._runtime.replays, tasks)
            failed = {outcome.pair_id: outcome for outcome in outcomes if isinstance(outcome, Quarantined)}
            if not failed:
                gradients = {gradient.pair_id: gradient for gradient in outcomes}
                return [gradients[pair.pair_id] for pair in pairs], list(quarantined.values())
            quarantined |= failed


def verdict_metrics(pairs: Sequence[ImagePair], gradients: Sequence[GradientHandle]) -> dict[str, float]:
    """Returns statistics of p(right verdict), over all pairs, over same-class and over different-class ones.

    ``verdict/right_share`` is the share of pairs with p(right) above 1/2, ``verdict/probability_mean`` the mean of
    p(right). A statistic without a pair is left out.

    Args:
        pairs: pairs of the step.
        gradients: results of replay for those that trained; the loss of each is -log p(right), divided by their number.
    """
    same = {pair.pair_id: pair.same for pair in pairs}
    p_right = {gradient.pair_id: math.exp(-len(gradients) * gradient.loss) for gradient in gradients}
    metrics = {
        "verdict/pairs": float(len(gradients)),
        "replay/tokens": float(sum(gradient.num_tokens for gradient in gradients)),
    }
    for suffix, kinds in (("", (True, False)), ("_same", (True,)), ("_different", (False,))):
        values = [value for pair_id, value in p_right.items() if same[pair_id] in kinds]
        if values:
            metrics[f"verdict/right_share{suffix}"] = sum(value > 0.5 for value in values) / len(values)
            metrics[f"verdict/probability_mean{suffix}"] = sum(values) / len(values)
    return metrics
