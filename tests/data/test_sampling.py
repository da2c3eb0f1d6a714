"""The sampler's promises, counted: without replacement, equally often, a pure function of seed, step and index."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from saga_dist.data.sampling import ClassBalancedSampler, balanced_draw, draw_pairs, evaluation_pairs
from saga_dist.errors import DataError


@pytest.mark.parametrize(("num_items", "width"), [(8, 4), (7, 3), (10, 4), (5, 5), (16, 1), (9, 6), (4, 3), (1, 1)])
def test_the_stream_is_balanced_and_its_windows_hold_nothing_twice(num_items: int, width: int) -> None:
    counts: Counter[int] = Counter()
    for position in range(5 * num_items):
        items, turns = balanced_draw(num_items, width, position, "test", 3)
        assert len(set(items.tolist())) == width
        for item, turn in zip(items.tolist(), turns.tolist(), strict=True):
            assert 0 <= item < num_items
            assert counts[item] == turn
            counts[item] += 1
        seen = [counts[item] for item in range(num_items)]
        assert max(seen) - min(seen) <= 1
    assert set(counts.values()) == {5 * width}


def test_a_window_depends_on_its_position_and_key_only() -> None:
    late, _ = balanced_draw(100, 16, 10**9, "a")
    again, _ = balanced_draw(100, 16, 10**9, "a")
    other, _ = balanced_draw(100, 16, 10**9, "b")
    assert late.tolist() == again.tolist()
    assert late.tolist() != other.tolist()


def test_straddling_windows_are_still_uniform() -> None:
    # Window 1 of (4, 3) holds the tail of one permutation and the head of the next: each item 3 times out of 4.
    counts = Counter(item for key in range(2000) for item in balanced_draw(4, 3, 1, key)[0].tolist())
    for item in range(4):
        assert abs(counts[item] - 1500) < 110  # 5 standard deviations are 97


LABELS = np.repeat(np.arange(10), [4, 5, 6, 7, 8, 4, 5, 6, 7, 8])


def make_sampler(seed: int = 0) -> ClassBalancedSampler:
    return ClassBalancedSampler(LABELS, batch_size=16, images_per_class=4, seed=seed)


def test_a_micro_batch_holds_whole_classes_and_no_image_twice() -> None:
    sampler = make_sampler()
    for step in range(30):
        for index in range(3):
            batch = sampler.micro_batch(step, index, 8)
            assert (batch.step, batch.index) == (step, index)
            assert len(batch.image_ids) == len(set(batch.image_ids)) == 16
            assert tuple(LABELS[list(batch.image_ids)]) == batch.labels
            assert sorted(Counter(batch.labels).values()) == [4, 4, 4, 4]


def test_over_steps_every_class_and_every_image_of_a_class_comes_equally_often() -> None:
    sampler = make_sampler()
    for index in (0, 2):
        classes: Counter[int] = Counter()
        images: Counter[int] = Counter()
        for step in range(700):  # 280 turns a class: whole rounds of 4 from 4, 5, 6, 7 and 8 images
            batch = sampler.micro_batch(step, index, 0)
            classes.update(set(batch.labels))
            images.update(batch.image_ids)
        assert set(classes.values()) == {280}
        for label in range(10):
            of_class = np.flatnonzero(label == LABELS)
            shares = [images[int(image)] for image in of_class]
            assert max(shares) - min(shares) <= 1
            assert sum(shares) == 280 * 4


def test_a_micro_batch_is_a_function_of_seed_step_and_index() -> None:
    sampler = make_sampler()
    wanted = [(step, index) for step in range(6) for index in range(3)]
    forward = {at: sampler.micro_batch(*at, 8) for at in wanted}
    backward = {at: make_sampler().micro_batch(*at, 8) for at in reversed(wanted)}
    assert forward == backward
    assert len({batch.image_ids for batch in forward.values()}) == len(wanted)
    assert len({batch.augmentation_seed for batch in forward.values()}) == len(wanted)
    assert make_sampler(seed=1).micro_batch(0, 0, 8).image_ids != forward[0, 0].image_ids
    places = {
        tuple((batch.image_ids.index(pair.image_a), batch.image_ids.index(pair.image_b)) for pair in batch.pairs)
        for batch in forward.values()
    }
    assert len(places) == len(wanted)  # pairs are drawn anew, not only from other images


def test_pairs_of_a_batch_change_nothing_else_in_it() -> None:
    sampler = make_sampler()
    assert sampler.micro_batch(3, 1, 0).pairs == ()
    assert sampler.micro_batch(3, 1, 0).image_ids == sampler.micro_batch(3, 1, 16).image_ids


def test_pairs_are_of_the_batch_balanced_distinct_and_named() -> None:
    sampler = make_sampler()
    ids = []
    for step, index in itertools.product(range(10), range(2)):
        batch = sampler.micro_batch(step, index, 16)
        assert sum(pair.same for pair in batch.pairs) == 8
        assert len({frozenset((pair.image_a, pair.image_b)) for pair in batch.pairs}) == 16
        for pair in batch.pairs:
            assert pair.image_a != pair.image_b
            assert {pair.image_a, pair.image_b} <= set(batch.image_ids)
            assert (pair.label_a, pair.label_b) == (LABELS[pair.image_a], LABELS[pair.image_b])
        ids += [pair.pair_id for pair in batch.pairs]
    assert len(set(ids)) == len(ids)
    assert make_sampler().micro_batch(12, 0, 16).pairs[3].pair_id == "s000013.m0.p03"


def test_every_pair_is_equally_likely_in_either_order_at_every_place() -> None:
    # 3 same-class and 6 different-class unordered pairs of 4 + 2 images... counted over many draws.
    images, labels = (10, 11, 12, 20), (1, 1, 1, 2)
    ordered: Counter[tuple[int, int]] = Counter()
    first_is_same = 0
    for key in range(6000):
        pairs = draw_pairs(images, labels, 2, (key, "x"), prefix="p")
        ordered.update((pair.image_a, pair.image_b) for pair in pairs)
        first_is_same += pairs[0].same
    # 3 unordered pairs of each kind, two orders each: 12 ordered pairs, 1000 expected of each.
    assert len(ordered) == 12
    assert max(abs(count - 1000) for count in ordered.values()) < 150  # 5 standard deviations are 144
    assert abs(first_is_same - 3000) < 200


def test_all_pairs_can_be_asked_for_and_one_more_is_an_error() -> None:
    pairs = draw_pairs((5, 6, 7, 8), (0, 0, 1, 1), 4, (0,), prefix="p")
    assert {frozenset((pair.image_a, pair.image_b)) for pair in pairs if pair.same} == {
        frozenset((5, 6)),
        frozenset((7, 8)),
    }
    with pytest.raises(DataError, match="3 same-class pairs asked of images that have 2; lower"):
        draw_pairs((5, 6, 7, 8), (0, 0, 1, 1), 6, (0,), prefix="p")
    with pytest.raises(DataError, match="1 different-class pairs asked of images that have 0"):
        draw_pairs((5, 6), (0, 0), 2, (0,), prefix="p")
    assert draw_pairs((), (), 0, (0,), prefix="p") == ()


def test_an_odd_number_has_one_more_different_pair() -> None:
    pairs = draw_pairs(range(8), [0, 0, 0, 0, 1, 1, 1, 1], 5, (0,), prefix="p")
    assert [sum(pair.same for pair in pairs), len(pairs)] == [2, 5]


def test_evaluation_pairs_of_a_large_split() -> None:
    labels = np.random.default_rng(0).integers(0, 743, 37_150)
    pairs = evaluation_pairs(labels, 1000, seed=3)
    assert sum(pair.same for pair in pairs) == 500
    assert len({frozenset((pair.image_a, pair.image_b)) for pair in pairs}) == 1000
    assert all((labels[pair.image_a], labels[pair.image_b]) == (pair.label_a, pair.label_b) for pair in pairs)
    assert [pair.pair_id for pair in pairs[:2]] == ["eval.p000", "eval.p001"]
    assert pairs == evaluation_pairs(labels, 1000, seed=3)
    assert pairs != evaluation_pairs(labels, 1000, seed=4)


def test_a_small_class_is_an_error_when_the_sampler_is_made() -> None:
    with pytest.raises(
        DataError, match=r"training class 1 has 3 images; expected at least images_per_class = 4; lower"
    ):
        ClassBalancedSampler([0] * 4 + [1] * 3, 8, 4, seed=0)
    with pytest.raises(DataError, match="training class wren has 3 images"):
        ClassBalancedSampler([0] * 4 + [1] * 3, 8, 4, seed=0, class_names=["tit", "wren"])


def test_too_few_classes_and_an_uneven_batch_are_errors() -> None:
    with pytest.raises(DataError, match=r"2 training classes; expected at least 3 .*; lower data.batch_size"):
        ClassBalancedSampler([0] * 4 + [1] * 4, 12, 4, seed=0)
    with pytest.raises(DataError, match="batch_size = 7; expected a multiple of images_per_class = 4"):
        ClassBalancedSampler([0] * 4 + [1] * 4, 7, 4, seed=0)
    with pytest.raises(DataError, match="0 training classes"):
        ClassBalancedSampler([], 8, 4, seed=0)
