"""Recordings of the version before: a file that this package wrote then is read, with what it did not say derived."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from saga_dist.errors import WireError
from saga_dist.wire import groups_from_batch, read_recording, write_recording

VERSION_3 = Path(__file__).with_name("scored_groups_version_3.arrow")
"""Two pairs of the built-in birds with four completions each, by `saga-dist rollout` before ``is_correct``."""


def version_3_batch() -> pa.RecordBatch:
    return pa.ipc.open_file(pa.py_buffer(VERSION_3.read_bytes())).get_batch(0)


def test_correct_are_the_completions_of_reward_1() -> None:
    batch = version_3_batch()
    assert batch.schema.metadata[b"saga_dist.version"] == b"3"
    assert "is_correct" not in batch.schema.names
    different, same = read_recording(VERSION_3)
    assert (different.pair.same, same.pair.same) == (False, True)
    assert different.rewards_G.tolist() == [0, 0, 0, 0]
    assert different.is_correct_G.tolist() == [False] * 4
    assert same.rewards_G.tolist() == [0, 0, 1, 0]
    assert same.is_correct_G.tolist() == [False, False, True, False]
    assert same.is_correct_G.dtype == np.bool_


def test_everything_else_is_as_it_was_recorded() -> None:
    _, same = read_recording(VERSION_3)
    assert same.pair_id == "s000000.m0.p01"
    assert same.verdicts == (None, None, True, None)
    assert same.completions.texts[2].endswith('"same_species": "yes"}')
    assert [len(ids) for ids in same.completions.token_ids] == [len(row) for row in same.completions.log_probs]
    # Rewards 0, 0, 1, 0: mean 1/4, sample deviation 1/2; epsilon 1e-4.
    np.testing.assert_allclose(same.advantages_G, [-0.4999, -0.4999, 1.4997, -0.4999], atol=1e-4)


def test_a_slice_of_an_older_batch_gives_its_own_rows() -> None:
    (same,) = groups_from_batch(version_3_batch().slice(1, 1))
    assert same.is_correct_G.tolist() == [False, False, True, False]


def test_written_again_it_is_of_this_version(tmp_path: Path) -> None:
    write_recording(tmp_path / "again.arrow", read_recording(VERSION_3))
    batch = pa.ipc.open_file(pa.py_buffer((tmp_path / "again.arrow").read_bytes())).get_batch(0)
    assert batch.schema.metadata[b"saga_dist.version"] == b"4"
    assert [group.is_correct_G.tolist() for group in read_recording(tmp_path / "again.arrow")] == [
        [False] * 4,
        [False, False, True, False],
    ]


def test_an_older_batch_with_other_columns_is_refused() -> None:
    with pytest.raises(WireError, match="columns pair_id") as caught:
        groups_from_batch(version_3_batch().drop_columns(["verdicts"]))
    assert "\n" not in str(caught.value)
