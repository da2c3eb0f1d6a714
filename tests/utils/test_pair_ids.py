"""Steps are counted from 1 in ids and from 0 in the keys of random numbers."""

from __future__ import annotations

import pytest

from saga_dist.utils.pair_ids import from_zero_based, micro_batch_of, pair_id_prefix, random_key, step_of


def test_ids_count_steps_from_1_and_counters_from_0() -> None:
    pair_id = f"{pair_id_prefix(12, 4)}03"
    assert pair_id == "s000013.m4.p03"
    assert step_of(pair_id) == 13
    assert micro_batch_of(pair_id) == (12, 4)


def test_the_random_key_is_the_id_of_earlier_versions() -> None:
    assert random_key("s000013.m4.p03") == "s000012.m4.p03"
    assert random_key("s000001.m0.p100") == "s000000.m0.p100"
    assert random_key("s1000000.m0.p00") == "s999999.m0.p00"
    assert from_zero_based("s000012.m4.p03") == "s000013.m4.p03"


@pytest.mark.parametrize("other", ["eval.p00", "check-s000001.m0.p00", "p", ""])
def test_other_ids_stay_as_they_are(other: str) -> None:
    assert random_key(other) == from_zero_based(other) == other
    assert step_of(other) is micro_batch_of(other) is None
