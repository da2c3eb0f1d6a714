"""The start-up check judges float32 by the mean, and bfloat16 by median and KL, on numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from saga_dist.training.engine_check import EngineGap
from saga_dist.types import LogProbMismatch


def gap(*groups: tuple[list[float], list[float]], single_tokens: bool = True) -> EngineGap:
    """The gap of groups of one completion each: log-probabilities of the engine, then of replay."""
    scored, gradients = [], []
    for engine, replay in groups:
        differences = np.array(replay) - np.array(engine)
        replayed = (np.array(replay, np.float32),) if single_tokens else ()
        kl = float(np.mean(np.exp(differences) - 1 - differences))
        mismatch = LogProbMismatch(float(np.abs(differences).mean()), kl, replayed=replayed)
        scored.append(
            SimpleNamespace(
                num_tokens=len(engine), completions=SimpleNamespace(log_probs=(np.array(engine, np.float32),))
            )
        )
        gradients.append(SimpleNamespace(num_tokens=len(engine), mismatch=mismatch))
    return EngineGap.of(scored, gradients)


def test_mean_median_and_kl_are_over_all_tokens() -> None:
    """Differences 0.1, -0.1, 0.4 and 0: mean 0.15, median 0.1, KL (0.00517 + 0.00484 + 0.09182 + 0) / 4."""
    found = gap(([-1.0, -1.0, -1.0], [-0.9, -1.1, -0.6]), ([-2.0], [-2.0]))
    assert (found.mean, found.median) == (pytest.approx(0.15), pytest.approx(0.1, rel=1e-6))
    assert found.kl == pytest.approx(0.025458, rel=1e-3)
    assert found.num_tokens == 4
    assert str(found) == "mean 0.15, median 0.1, KL 0.025 nats per token"


def test_few_tokens_far_apart_are_noise_in_bfloat16_and_an_error_in_float32() -> None:
    """19 tokens equal, one off by 1.1: mean 0.055, median 0, KL (e^1.1 - 2.1) / 20 = 0.0452."""
    found = gap(([-1.5] * 20, [-1.5] * 19 + [-0.4]))
    assert found.excess("bfloat16", 0.05) == ""
    assert found.excess("float32", 0.05) == "mean 0.055"


def test_a_published_pair_in_bfloat16_passes_and_another_model_does_not() -> None:
    """A mean of 0.06 with a median of 0.02 is noise; every token off by 0.06 is another model."""
    noise = [0.02] * 15 + [0.18] * 5
    assert gap(([-1.0] * 20, [-1.0 - each for each in noise])).excess("bfloat16", 0.05) == ""
    assert gap(([-1.0] * 20, [-1.06] * 20)).excess("bfloat16", 0.05) == "median 0.06"


def test_a_large_kl_alone_is_refused() -> None:
    """Eleven tokens equal, nine off by 0.6: median 0, KL 9 (e^0.6 - 1.6) / 20 = 0.1."""
    found = gap(([-1.0] * 20, [-1.0] * 11 + [-0.4] * 9))
    assert found.excess("bfloat16", 0.05) == "KL 0.1"


def test_both_are_named_and_nan_is_never_agreement() -> None:
    assert gap(([-1.0] * 4, [-2.0] * 4)).excess("bfloat16", 0.05) == "median 1, KL 0.368"
    broken = gap(([-1.0] * 4, [float("nan")] * 4))
    assert broken.excess("float32", 0.05) == "mean nan"
    assert broken.excess("bfloat16", 0.05) == "median nan, KL nan"


def test_without_single_tokens_the_mean_stands_for_the_median() -> None:
    found = gap(([-1.0] * 20, [-1.0] * 19 + [1.0]), single_tokens=False)
    assert found.median == found.mean == pytest.approx(0.1)
