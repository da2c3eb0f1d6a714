"""The checks of ``saga-dist doctor`` that load the models: one pair judged, and one optimizer step that is not kept."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.config import RunConfig

if TYPE_CHECKING:
    from saga_dist.runtime.serial import SerialRuntime
    from saga_dist.types import EncoderTokens, ImagePair, ScoredGroup


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a check that did not fail."""

    text: str
    """Result of the check, one line."""
    warning: str = ""
    """Doubt about it, with the setting to change; empty without one."""


class SmokeTest:
    """Learner, engine and replay worker in this process, built by the first check that needs them.

    A failure to build them is remembered, so that a later check fails at once with the same error.

    Args:
        config: the whole configuration; the runtime it names is not started.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._runtime: SerialRuntime | None = None
        self._failure: Exception | None = None

    def close(self) -> None:
        """Closes the engine, if one was built."""
        if self._runtime is not None:
            self._runtime.close()

    def judge_one_pair(self) -> Finding:
        """Returns the frozen MLLM's verdict for two test images, with a warning when it is cut off or unreadable.

        The text has the seconds until the engine was ready, the number of generated tokens, the verdict and the truth.
        """
        from saga_dist.types import RolloutTask, Sampling
        from saga_dist.workers.serial_pool import run_all

        started = time.monotonic()
        runtime, settings = self._models(), self._config.rollout
        ready = time.monotonic()
        pair, tokens = self._encoded_test_pair()
        sampling = Sampling(num_completions=1, temperature=0.0, top_p=1.0, max_tokens=settings.max_tokens, seed=0)
        group = run_all(runtime.rollouts, [RolloutTask(pair, tokens, sampling)])[0]
        verdict = {True: "same", False: "different", None: "none"}[group.verdicts[0]]
        text = (
            f"{settings.engine} ready after {ready - started:.0f} s; {group.num_tokens} tokens in "
            f"{time.monotonic() - ready:.1f} s; verdict {verdict}, truth {'same' if pair.same else 'different'}"
        )
        return Finding(text, _pair_warning(group, settings.max_tokens))

    def force_one_verdict(self) -> str:
        """Returns one line on p(right verdict) of two test images, by a replay through the frozen MLLM."""
        from saga_dist.types import VerdictTask
        from saga_dist.workers.serial_pool import run_all

        started = time.monotonic()
        runtime = self._models()
        ready = time.monotonic()
        pair, tokens = self._encoded_test_pair()
        gradient = run_all(runtime.replays, [VerdictTask(pair, tokens, num_pairs_total=1)])[0]
        return (
            f"replay ready after {ready - started:.0f} s; one verdict in {time.monotonic() - ready:.1f} s; p(right) "
            f"{math.exp(-gradient.loss):.3f}, truth {'same' if pair.same else 'different'}"
        )

    def take_one_step(self, warnings: list[str]) -> str:
        """Returns one line with the metrics of one optimizer step, among them the share of each loss in the gradient.

        Args:
            warnings: receives a line for each loss whose share is below ``objective.min_share``, and for each without
                a gradient in this step.
        """
        from saga_dist.cli.console import step_line
        from saga_dist.data.sampling import training_sampler
        from saga_dist.training.coordinator import Coordinator
        from saga_dist.training.share_monitor import advice_for_step

        runtime = self._models()
        sampler = training_sampler(self._config, runtime.learner.labels("train"))
        with tempfile.TemporaryDirectory(prefix="saga-doctor-") as folder:
            result = Coordinator(self._config, runtime, sampler, Path(folder)).train_step()
        warnings += advice_for_step(self._config.objective, result.metrics)
        return step_line(result)

    def _encoded_test_pair(self) -> tuple[ImagePair, EncoderTokens]:
        """Returns a pair of test images and its encoder tokens."""
        from saga_dist.data.sampling import evaluation_pairs

        learner = self._models().learner
        pair = evaluation_pairs(learner.labels("test"), 2, seed=0)[0]
        return pair, learner.encode_pairs("test", [pair])[0]

    def _models(self) -> SerialRuntime:
        from saga_dist.runtime.serial import SerialRuntime

        if self._failure is not None:
            raise self._failure
        if self._runtime is None:
            try:
                self._runtime = SerialRuntime(self._config)
            except Exception as error:
                self._failure = error
                raise
        return self._runtime


def _pair_warning(group: ScoredGroup, max_tokens: int) -> str:
    """Returns what is doubtful about a group of one completion, with the setting to change; empty when nothing is."""
    if group.completions.finish_reasons[0] == "length":
        return f"the answer is cut off at rollout.max_tokens = {max_tokens}; raise it"
    if group.verdicts[0] is None:
        answer = " ".join(group.completions.texts[0].split())[:60]
        return f"no verdict can be read from {answer!r}; check prompt.variant, prompt.vocabulary and model.path"
    return ""
