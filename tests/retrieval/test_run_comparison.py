"""Comparisons over several runs: the t-test by hand, the level under noise of runs, and the power."""

from __future__ import annotations

import numpy as np
import pytest

from saga_dist.errors import DataError
from saga_dist.retrieval.run_comparison import (
    RunComparison,
    compare_runs,
    interval_remark,
    paired_t_test,
    t_interval,
    wider,
)

CLASSES, PER_CLASS, SEEDS = 50, 40, 6
LABELS = np.repeat(np.arange(CLASSES), PER_CLASS)


def experiments(count: int, *, run_sd: float, class_sd: float = 0.0, effect: float = 0.0) -> list[RunComparison]:
    """Simulated experiments of two methods; ``run_sd`` is that of a run's Recall@1, a share.

    A class has a base rate; a run of a method is better or worse for all classes at once; hits are Bernoulli draws.
    """
    generator = np.random.default_rng(0)
    found = []
    for seed in range(count):
        base_C = generator.uniform(0.2, 0.6, CLASSES)
        gain_C = effect + generator.normal(0, class_sd, CLASSES)
        noise_a_S, noise_b_S = generator.normal(0, run_sd, (2, SEEDS, 1))
        rates = (base_C + gain_C + noise_a_S, base_C + noise_b_S)
        hits_a, hits_b = (
            (generator.random((SEEDS, CLASSES, PER_CLASS)) < rate[..., None]).reshape(SEEDS, -1) for rate in rates
        )
        found.append(compare_runs(hits_a, hits_b, LABELS, seed=seed, num_resamples=200))
    return found


def rejections(found: list[RunComparison]) -> float:
    """Share of experiments that find a difference; interval and p-value of the leading test agree on which."""
    rejected = [one.leading.p_value <= 0.05 for one in found]
    excluded = [not one.leading.low <= 0 <= one.leading.high for one in found]
    assert np.mean(np.not_equal(rejected, excluded)) < 0.02  # they differ where the test over classes leads
    return float(np.mean(rejected))


@pytest.mark.integration
def test_a_true_null_with_noise_of_runs_is_rejected_in_at_most_7_of_100_experiments() -> None:
    """Standard deviation of a run 2 points, six seeds, no difference between the methods."""
    found = experiments(1000, run_sd=0.02)
    assert rejections(found) <= 0.07
    # The classes alone find a difference in a third of the experiments: what the seeds are for.
    assert np.mean([one.over_classes.p_value <= 0.05 for one in found]) > 0.2
    assert np.mean([one.leads == "seeds" for one in found]) > 0.9


@pytest.mark.integration
def test_a_true_null_with_gains_that_differ_between_classes_is_not_rejected_more_often() -> None:
    """Without noise of runs the test over the same classes is the wrong one, and the other leads."""
    found = experiments(400, run_sd=0.0, class_sd=0.06)
    assert rejections(found) <= 0.08
    assert np.mean([one.over_seeds is not None and one.over_seeds.p_value <= 0.05 for one in found]) > 0.12


def test_an_effect_is_found() -> None:
    """Four points with runs of a standard deviation of 1 point, which alignment brings in a built-in world, and 2."""
    assert rejections(experiments(200, run_sd=0.01, effect=0.04)) > 0.9
    assert rejections(experiments(200, run_sd=0.02, effect=0.04)) > 0.6


def test_paired_t_test_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, error 1/sqrt(3), t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom, of which
    # the cumulative distribution is 1/2 + t / (2 sqrt(2 + t^2)): p = 1 - 3.4641 / sqrt(14) = 0.07418.
    found = paired_t_test([11, 13, 15], [10, 11, 12])
    assert found.difference == pytest.approx(2)
    assert found.p_value == pytest.approx(1 - 12**0.5 / 14**0.5, abs=1e-12)
    half = 4.302652729911275 / 3**0.5  # the 97.5 % quantile of t with 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-9)
    assert paired_t_test([10, 11, 12], [11, 13, 15]) == pytest.approx((-2, -2 - half, -2 + half, found.p_value))
    # Two seeds: t = 3 with one degree of freedom, p = 1 - 2 atan(3) / pi.
    assert paired_t_test([0.2, 0.4], [0.1, 0.2]).p_value == pytest.approx(1 - 2 * np.arctan(3) / np.pi)


def test_equal_differences_have_an_interval_that_is_a_point() -> None:
    assert paired_t_test([0.2, 0.4], [0.1, 0.3]) == pytest.approx((0.1, 0.1, 0.1, 0.0))
    assert paired_t_test([0.2, 0.4], [0.2, 0.4]) == (0.0, 0.0, 0.0, 1.0)


def test_seeds_are_paired() -> None:
    """Runs that differ by seed far more than by method: the pairing removes what the seed does to both."""
    by_seed, gains = np.array([0.1, 0.3, 0.5, 0.7]), np.array([0.01, 0.02, 0.03, 0.02])
    found = paired_t_test(by_seed + gains, by_seed)
    assert found.p_value < 0.02
    assert paired_t_test(np.flip(by_seed) + gains, by_seed).p_value > 0.5


def test_the_comparison_holds_both_tests_of_the_same_difference() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(25), 4)
    a, b = generator.random((2, 3, 100)) < 0.5
    found = compare_runs(a, b, labels, seed=0, num_resamples=500)
    assert found.over_seeds == paired_t_test(a.mean(1), b.mean(1))
    assert found.over_classes.difference == pytest.approx(a.mean() - b.mean())
    assert found.over_classes.difference == pytest.approx(found.leading.difference)
    alone = compare_runs(a[:1], b[:1], labels, seed=0, num_resamples=500)
    assert (alone.over_seeds, alone.leads) == (None, "classes")
    assert alone.leading == alone.over_classes


def test_the_wider_interval_leads() -> None:
    assert wider((0.0, 0.1), None) == "classes"
    assert wider((0.0, 0.1), (0.0, 0.2)) == "seeds"
    assert wider((-0.1, 0.1), (0.3, 0.4)) == "classes"
    assert wider((0.0, 0.5), (0.25, 0.75)) == "classes"


@pytest.mark.parametrize(
    ("classes", "seeds", "remark"),
    [
        (50, 6, ""),
        (20, 3, ""),
        (50, 1, "one run: says nothing about other runs"),
        (50, 2, "only 2 seeds"),
        (19, 2, "only 2 seeds; only 19 classes"),
        (19, 0, "only 19 classes"),
        (100, 0, ""),
    ],
)
def test_remarks(classes: int, seeds: int, remark: str) -> None:
    assert interval_remark(num_classes=classes, num_seeds=seeds) == remark


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(DataError, match="same seeds"):
        paired_t_test([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="at least two runs"):
        t_interval([1.0])
    with pytest.raises(DataError, match="at least two runs"):
        t_interval([1.0, float("nan")])
    with pytest.raises(DataError, match="same seeds and queries"):
        compare_runs(np.ones((2, 4)), np.ones((3, 4)), np.arange(4), seed=0)
