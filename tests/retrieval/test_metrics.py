from __future__ import annotations

import itertools
import math
from collections import Counter
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t
from sklearn.metrics import normalized_mutual_info_score

from saga_dist.errors import DataError
from saga_dist.retrieval import candidates, exact_ranking, small_ranking
from saga_dist.retrieval.clusters import kmeans_clusters, nmi
from saga_dist.retrieval.exact_ranking import ranked_matches
from saga_dist.retrieval.metrics import (
    clustered_interval,
    hits_at,
    paired_test,
    precision_at_r,
    ranking_metrics,
    recall_at_k,
)
from saga_dist.retrieval.normalized import normalized_rows


def _oracle(
    queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray, own: bool
) -> tuple[list[list[bool]], list[int]]:
    """Match flags by rank, and R, in plain fp64 loops: sort by cosine, other classes first among equals."""
    flags, relevant = [], []
    for q, query in enumerate(queries):
        items = []
        for g, item in enumerate(gallery):
            if own and g == q:
                continue
            cosine = round(math.fsum(float(a) * float(b) for a, b in zip(query, item, strict=True)), 10)
            items.append((-cosine, bool(query_labels[q] == gallery_labels[g])))
        flags.append([same for _, same in sorted(items)])
        relevant.append(sum(flags[-1]))
    return flags, relevant


def _unit(values: np.ndarray) -> np.ndarray:
    """Unit vectors as they are stored: normalised in fp64, kept in fp32."""
    return np.array(
        [[x / math.sqrt(math.fsum(y * y for y in row)) for x in row] for row in values.tolist()], np.float32
    )


def _case(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Few or many images with duplicates, exact ties, near ties and classes of one image."""
    count, width = int(generator.integers(2, 45)), int(generator.integers(1, 6))
    kind = generator.integers(4)
    if kind == 0:
        values = generator.integers(-1, 2, (count, width)).astype(np.float64)  # many duplicates and equal cosines
        values[~values.any(1), 0] = 1
    else:
        values = generator.normal(size=(count, width))
    if kind == 1:
        values = values[generator.integers(0, max(1, count // 3), count)]
    if kind == 2:
        values = values[:1] + 1e-5 * values  # nearly one point: fp32 scores cannot tell them apart
    return values, generator.integers(0, generator.integers(1, count + 1), count) * 2**40


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small galleries go through all stages too: blocks of five, two candidates more than ranks, bfloat16 first."""
    monkeypatch.setattr(exact_ranking, "rank_by_products", lambda task, matches_QK: np.arange(len(task.queries)))
    monkeypatch.setattr(candidates, "BLOCK", 5)
    monkeypatch.setattr(exact_ranking, "_CANDIDATES_PER_RANK", 1)
    monkeypatch.setattr(exact_ranking, "_EXTRA_CANDIDATES", 2)
    monkeypatch.setattr(exact_ranking, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(exact_ranking, "_PAIRS_AT_ONCE", 40)
    monkeypatch.setattr(exact_ranking, "half_is_faster", lambda: True)


def seeds(first: int, end: int, *, of_default: int) -> list[Any]:
    """Returns the seeds from ``first`` to ``end`` as parameters, those after the first few marked slow."""
    slow = (pytest.param(seed, marks=pytest.mark.slow) for seed in range(first + of_default, end))
    return [*range(first, first + of_default), *slow]


@pytest.mark.parametrize("seed", seeds(0, 20, of_default=8))
def test_equals_the_loop_on_random_cases(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 data sets for each seed, half of them in blocks; every hit and every figure is that of the loop."""
    if seed % 2:
        monkeypatch.setattr(small_ranking, "_BLOCK", 7)
    _compare_with_the_loop(seed)


# All kinds of data sets are among the 250 of five seeds.
@pytest.mark.integration
@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("seed", seeds(20, 40, of_default=5))
def test_fast_scores_and_candidates_change_nothing(seed: int) -> None:
    """50 more data sets for each seed, each of them through candidates."""
    _compare_with_the_loop(seed)


def _compare_with_the_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(50):
        values, labels = _case(generator)
        unit = _unit(values)
        flags, relevant = _oracle(unit, labels, unit, labels, own=True)
        ks = (1, 2, 4, 8, 1000)
        result = recall_at_k(values, labels, ks=ks)
        assert result.recall == {k: pytest.approx(np.mean([any(row[:k]) for row in flags])) for k in ks}
        assert result.first_hit_I.tolist() == [row.index(True) + 1 if True in row else 0 for row in flags]
        assert result.correct_at_1_I.tolist() == [row[0] for row in flags]
        assert result.num_unfindable == relevant.count(0)
        precisions = [
            sum(sum(row[: i + 1]) / (i + 1) for i in range(r) if row[i]) / r if r else 0.0
            for row, r in zip(flags, relevant, strict=True)
        ]
        shares = [sum(row[:r]) / r if r else 0.0 for row, r in zip(flags, relevant, strict=True)]
        assert precision_at_r(values, labels) == pytest.approx((np.mean(precisions), np.mean(shares)), abs=1e-12)
        few = recall_at_k(values, labels, ks=(1, 2))
        assert few.recall == {k: result.recall[k] for k in (1, 2)}
        both = ranking_metrics(values, labels, ks=(2, 1))
        assert both.recall.recall == few.recall
        assert both.recall.first_hit_I.tolist() == few.first_hit_I.tolist()
        assert both.precision == precision_at_r(values, labels)


@pytest.mark.parametrize("own", [True, False], ids=["one set", "separate gallery"])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 3e-5], ids=lambda spread: f"spread {spread:g}")
def test_products_rank_as_float64_does(spread: float, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of nearly equal items, whose order float32 scores cannot tell; with small spreads all items are such."""
    monkeypatch.setattr(small_ranking, "_BLOCK", 64)
    generator = np.random.default_rng(7)
    values = generator.normal(size=40) + spread * generator.normal(size=(500, 40))
    values[300:] = values[:200] * (1 + 1e-7 * generator.normal(size=(200, 40)))
    values[400:] = values[100:200]  # exact duplicates, which are ties
    labels = generator.integers(0, 25, 500)
    given = (values, labels) if own else (values[:200], labels[:200])
    gallery = () if own else (values[200:], labels[200:])
    found_QK = ranked_matches(*given, 12, *gallery)
    monkeypatch.setattr(exact_ranking, "_rank_by_candidates", lambda task, undecided, *args, **kwargs: undecided)
    np.testing.assert_array_equal(found_QK, ranked_matches(*given, 12, *gallery, most_products=0))


def test_products_of_well_separated_items_leave_no_query_over(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(8)
    values, labels = generator.normal(size=(300, 40)), generator.integers(0, 25, 300)
    expected = ranked_matches(values, labels, 12)
    left = []
    monkeypatch.setattr(
        exact_ranking,
        "_rank_against_all",
        lambda task, rows: left.append(len(rows)) or np.zeros((len(rows), task.num_ranks), bool),
    )
    np.testing.assert_array_equal(ranked_matches(values, labels, 12), expected)
    assert left == [0]


@pytest.mark.parametrize("seed", seeds(0, 10, of_default=5))
def test_separate_gallery_equals_the_loop(seed: int) -> None:
    _compare_with_the_loop_of_a_gallery(seed)


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("seed", seeds(10, 20, of_default=5))
def test_candidates_of_a_separate_gallery_change_nothing(seed: int) -> None:
    _compare_with_the_loop_of_a_gallery(seed)


def _compare_with_the_loop_of_a_gallery(seed: int) -> None:
    generator = np.random.default_rng(100 + seed)
    for _ in range(10):
        values, labels = _case(generator)
        split = len(values) // 2
        queries, gallery = values[:split], values[split:]
        flags, relevant = _oracle(_unit(queries), labels[:split], _unit(gallery), labels[split:], own=False)
        given = {"gallery_GE": gallery, "gallery_labels_G": labels[split:]}
        result = recall_at_k(queries, labels[:split], ks=(1, 3), **given)
        assert result.recall == {k: pytest.approx(np.mean([any(row[:k]) for row in flags])) for k in (1, 3)}
        assert result.num_unfindable == relevant.count(0)
        expected = np.mean([sum(row[:r]) / r if r else 0.0 for row, r in zip(flags, relevant, strict=True)])
        assert precision_at_r(queries, labels[:split], **given).r_precision == pytest.approx(expected)


def test_the_query_is_left_out_by_index_not_by_rank() -> None:
    """Two copies of each photograph, filed under different classes: no query has a right nearest neighbour."""
    values = np.repeat(np.eye(3), 2, axis=0)
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert recall_at_k(values, labels, ks=(1,)).recall[1] == 0.0
    ranked = np.argsort(-(values @ values.T), axis=1, kind="stable")
    dropped_first = labels[ranked[:, 1]] == labels
    assert dropped_first.mean() > 0  # what dropping the first hit would have claimed


def test_a_collapsed_encoder_finds_nothing_and_its_order_does_not_matter() -> None:
    labels = np.repeat(np.arange(20), 20)
    collapsed = np.ones((400, 7))
    assert recall_at_k(collapsed, labels).recall == {1: 0.0, 2: 0.0, 4: 0.0, 8: 0.0}
    generator = np.random.default_rng(0)
    values = generator.integers(-1, 2, (400, 4)) + 0.5
    order = generator.permutation(400)
    assert recall_at_k(values, labels).recall == recall_at_k(values[order], labels[order]).recall


@pytest.mark.parametrize("half", [False, True])
def test_the_usual_path_needs_no_fall_back(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    """A gallery much larger than the candidates, against a full fp64 matrix product."""

    def refuse(task: object, undecided: np.ndarray) -> np.ndarray:
        assert len(undecided) == 0, "well separated scores must not need the whole gallery"
        return np.zeros((0, 8), bool)

    monkeypatch.setattr(exact_ranking, "_rank_against_all", refuse)
    monkeypatch.setattr(exact_ranking, "half_is_faster", lambda: half)
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(60), 10)
    values = generator.normal(size=(60, 512))[labels] * 0.35 + generator.normal(size=(600, 512))
    unit = normalized_rows(values).astype(np.float64)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    ranked = np.argsort(-scores, axis=1)[:, :8]
    right = labels[ranked] == labels[:, None]
    result = recall_at_k(values.astype(np.float32), labels)
    assert result.recall == {k: pytest.approx(right[:, :k].any(1).mean()) for k in (1, 2, 4, 8)}
    assert 0.2 < result.recall[1] < 0.9


def test_length_of_embeddings_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    values, labels = generator.normal(size=(50, 4)), generator.integers(0, 6, 50)
    scaled = values * generator.uniform(1e-3, 1e3, (50, 1))
    assert recall_at_k(values, labels).recall == recall_at_k(scaled, labels).recall


def test_smallest_galleries() -> None:
    one = recall_at_k(np.ones((1, 2)), np.array([5]))
    assert (one.recall[8], one.num_unfindable) == (0.0, 1)
    assert precision_at_r(np.ones((1, 2)), np.array([5])) == (0.0, 0.0)
    two = recall_at_k(np.eye(2), np.array([5, 5]), ks=(1, 8))
    assert two.recall == {1: 1.0, 8: 1.0}


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros((3, 2)), np.arange(3), "3 embeddings are zero or not finite, first at row 0"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), np.arange(2), "first at row 1"),
        (np.eye(3), np.arange(2), "expected 3 integers"),
        (np.eye(3), np.arange(3.0), "float64.*expected 3 integers"),
        (np.eye(3, dtype=int), np.arange(3), "floating matrix"),
        (np.zeros((0, 2)), np.arange(0), "integers"),
    ],
)
def test_bad_input_is_one_line(values: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        recall_at_k(values, labels)
    with pytest.raises(DataError):
        precision_at_r(values, labels)


def test_half_a_gallery_and_bad_ks_are_refused() -> None:
    with pytest.raises(DataError, match="both or neither"):
        recall_at_k(np.eye(2), np.arange(2), gallery_GE=np.eye(2))
    with pytest.raises(DataError, match="ks = "):
        recall_at_k(np.eye(2), np.arange(2), ks=(0, 1))
    with pytest.raises(DataError, match="one dimension"):
        ranked_matches(np.eye(2), np.arange(2), 1, np.eye(3), np.arange(3))


def test_nmi_by_hand_and_by_seed() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    corners = np.eye(4)[labels]
    assert nmi(corners + 0.01 * generator.normal(size=corners.shape), labels) == pytest.approx(1.0)
    # every cluster holds half of two classes: H(class) = H(cluster) = log 4, mutual information log 2
    assert nmi(corners, np.tile([0, 1], 60) + 2 * (labels // 2)) == pytest.approx(0.5, abs=1e-6)
    noise = generator.normal(size=(120, 8))
    assert nmi(noise, labels, seed=1) == nmi(noise, labels, seed=1)
    assert nmi(noise, labels, seed=2**40 + 1) < 0.2
    assert nmi(corners * generator.uniform(1, 9, (120, 1)), labels) == pytest.approx(1.0)  # directions only


def test_first_hits_say_recall_at_every_k() -> None:
    assert hits_at(np.array([0, 1, 3, 8]), 1).tolist() == [False, True, False, False]
    assert hits_at(np.array([0, 1, 3, 8]), 4).tolist() == [False, True, True, False]


def _nmi_by_counting(classes: list[int], clusters: list[int]) -> float:
    total = len(classes)
    joint, rows, columns = Counter(zip(classes, clusters, strict=True)), Counter(classes), Counter(clusters)

    def entropy(counts: Counter[int]) -> float:
        return -math.fsum(n / total * math.log(n / total) for n in counts.values())

    mutual = math.fsum(n / total * math.log(n * total / (rows[a] * columns[b])) for (a, b), n in joint.items())
    mean = (entropy(rows) + entropy(columns)) / 2
    return mutual / mean if mean else 1.0


@pytest.mark.parametrize("seed", range(5))
def test_nmi_is_that_of_scikit_learn_and_of_counting_on_the_same_clustering(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for case in range(40):
        values, labels = _case(generator)
        clusters = kmeans_clusters(values, len(np.unique(labels)), seed=case)
        assert len(clusters) == len(labels)
        assert set(clusters.tolist()) <= set(range(len(np.unique(labels))))
        figure = nmi(values, labels, seed=case)
        # Nothing to share and nothing to know: one class is 1 by scikit-learn's convention.
        assert figure == min(max(normalized_mutual_info_score(labels, clusters), 0.0), 1.0)
        assert figure == pytest.approx(_nmi_by_counting(labels.tolist(), clusters.tolist()), abs=1e-9)


def test_nmi_is_silent_with_few_points(capfd: pytest.CaptureFixture[str]) -> None:
    assert nmi(np.eye(6), np.arange(6)) == pytest.approx(1.0)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_interval_equals_explicit_resampling_of_classes() -> None:
    """With four classes the bootstrap distribution can be listed, and the formula followed by hand."""
    labels = np.array([7, 7, 7, 9, 9, 4, 5, 5, 5, 5])
    correct = np.array([1, 1, 0, 0, 0, 1, 1, 0, 1, 0])
    members = [correct[labels == label].tolist() for label in (4, 5, 7, 9)]
    draws = [[hit for c in drawn for hit in members[c]] for drawn in itertools.product(range(4), repeat=4)]
    means = sorted(sum(draw) / len(draw) for draw in draws)

    normal, mean = NormalDist(), 0.5
    bias = normal.inv_cdf(sum((m < mean - 1e-9) + (m < mean + 1e-9) for m in means) / 2 / len(means))
    without = [np.concatenate([members[c] for c in range(4) if c != left]).mean() for left in range(4)]
    lean = [np.mean(without) - value for value in without]
    acceleration = sum(x**3 for x in lean) / (6 * sum(x**2 for x in lean) ** 1.5)
    bounds = []
    for tail in (0.3, 0.7):
        z = bias + math.sqrt(4 / 3) * student_t(3).ppf(tail)
        bounds.append(means[round(normal.cdf(bias + z / (1 - acceleration * z)) * (len(means) - 1))])
    low, high = clustered_interval(correct, labels, seed=0, num_resamples=50_000, confidence=0.4)
    assert (low, high) == pytest.approx(bounds, abs=0.01)
    assert 0 < low < mean < high < 1


SIMULATED = 2000


def _simulated_coverage(num_classes: int, mean: float, smallest: int, largest: int) -> float:
    """Share of made-up data sets, classes drawn from one population of classes, whose interval holds its mean."""
    generator, covered = np.random.default_rng(num_classes), 0
    for seed in range(SIMULATED):
        rate_C = generator.beta(4 * mean, 4 * (1 - mean), num_classes)
        labels = np.repeat(np.arange(num_classes), generator.integers(smallest, largest + 1, num_classes))
        low, high = clustered_interval(
            generator.random(len(labels)) < rate_C[labels], labels, seed=seed, num_resamples=500
        )
        covered += low <= mean <= high
    return covered / SIMULATED


@pytest.mark.integration
@pytest.mark.parametrize(
    ("num_classes", "mean", "smallest", "largest"),
    [
        (100, 0.8, 40, 60),
        pytest.param(98, 0.95, 60, 90, marks=pytest.mark.slow),  # as many classes as CUB
        pytest.param(50, 0.75, 100, 100, marks=pytest.mark.slow),  # as many classes as the birds
        pytest.param(50, 0.1, 30, 34, marks=pytest.mark.slow),
        (30, 0.5, 2, 40),
    ],
    ids=["CUB", "Cars", "Aircraft", "birds", "uneven"],
)
def test_interval_covers_the_truth_in_93_to_97_of_100_data_sets(
    num_classes: int, mean: float, smallest: int, largest: int
) -> None:
    assert 0.93 <= _simulated_coverage(num_classes, mean, smallest, largest) <= 0.97


def test_interval_widens_with_clusters_and_matches_the_binomial_without() -> None:
    generator = np.random.default_rng(0)
    independent = generator.random(2000) < 0.8
    low, high = clustered_interval(independent, np.arange(2000), seed=1)
    binomial = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert (high - low) / 2 == pytest.approx(binomial, rel=0.1)
    clustered = np.repeat(generator.random(100) < 0.8, 20)  # whole classes succeed or fail
    low, high = clustered_interval(clustered, np.repeat(np.arange(100), 20), seed=1)
    assert (high - low) / 2 > 3 * binomial
    assert low < clustered.mean() < high
    assert clustered_interval(clustered, np.repeat(np.arange(100), 20), seed=1) == (low, high)


def test_paired_test_exact_by_hand() -> None:
    # gains by class: +2, +1, 0, so |sum of +-2 +-1| >= 3 in 4 of 8 sign patterns
    labels = np.array([0, 0, 1, 2])
    result = paired_test(np.array([1, 1, 1, 0]), np.array([0, 0, 0, 0]), labels, seed=0)
    assert result.p_value == 0.5
    assert result.difference == 0.75
    assert result.low < 0.75 <= result.high
    assert paired_test(np.zeros(4), np.zeros(4), labels, seed=0)[:4] == (0.0, 0.0, 0.0, 1.0)


def test_paired_test_random_signs_agree_with_all_signs() -> None:
    generator = np.random.default_rng(5)
    labels = np.repeat(np.arange(12), 9)
    a = generator.random(108) < 0.75
    b = generator.random(108) < 0.6
    exact = paired_test(a, b, labels, seed=0, num_resamples=2**12)
    drawn = paired_test(a, b, labels, seed=0, num_resamples=2**12 - 1)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.02)
    assert drawn.difference == exact.difference


@pytest.mark.integration
@pytest.mark.parametrize("noisier", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_paired_test_rejects_a_true_null_in_5_of_100_data_sets(noisier: bool) -> None:
    """Both methods depend on the class and neither is better, the second with more spread between classes."""
    generator = np.random.default_rng(6)
    labels = np.repeat(np.arange(40), 12)
    rejected = outside = 0
    for seed in range(SIMULATED):
        rate_a = generator.beta(8, 4, (40, 1))
        rate_b = generator.beta(2, 1, (40, 1)) if noisier else generator.beta(8, 4, (40, 1))
        a, b = (generator.random((40, 12)) < rate for rate in (rate_a, rate_b))
        result = paired_test(a.ravel(), b.ravel(), labels, seed=seed, num_resamples=400)
        rejected += result.p_value <= 0.05
        outside += not result.low <= 0 <= result.high
    assert 0.035 <= rejected / SIMULATED <= 0.065
    assert 0.03 <= outside / SIMULATED <= 0.07


@pytest.mark.integration
def test_an_unclustered_test_would_be_wrong() -> None:
    """What the classes are for: with every image a class of its own, the same data reject far too often."""
    generator = np.random.default_rng(7)
    labels, rejected = np.arange(480), 0
    for seed in range(200):
        a, b = (generator.random((40, 12)) < generator.beta(2, 1, (40, 1)) for _ in range(2))
        rejected += paired_test(a.ravel(), b.ravel(), labels, seed=seed, num_resamples=200).p_value <= 0.05
    assert rejected > 40


def test_intervals_refuse_what_cannot_be_resampled() -> None:
    with pytest.raises(DataError, match="1 classes"):
        clustered_interval(np.ones(3), np.zeros(3, int), seed=0)
    with pytest.raises(DataError, match="one finite number per query"):
        clustered_interval(np.array([1.0, np.nan]), np.arange(2), seed=0)
    with pytest.raises(DataError, match="expected 2 integers"):
        clustered_interval(np.ones(2), np.arange(3), seed=0)
    with pytest.raises(DataError, match="the same queries"):
        paired_test(np.ones(2), np.ones(3), np.arange(2), seed=0)
    with pytest.raises(DataError, match="0 resamples"):
        clustered_interval(np.ones(2), np.arange(2), seed=0, num_resamples=0)
