"""Recordings of the version before: a file that this package wrote then is read, with what it did not say derived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from saga_dist.errors import DataError, WireError
from saga_dist.wire import (
    groups_from_batch,
    groups_to_batch,
    read_recording,
    recording_path,
    recordings,
    write_recording,
)

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
    assert same.pair_id == "s000001.m0.p01"  # its step was counted from 0
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
    assert batch.schema.metadata[b"saga_dist.version"] == b"5"
    assert [group.is_correct_G.tolist() for group in read_recording(tmp_path / "again.arrow")] == [
        [False] * 4,
        [False, False, True, False],
    ]


def test_an_older_batch_with_other_columns_is_refused() -> None:
    with pytest.raises(WireError, match="columns pair_id") as caught:
        groups_from_batch(version_3_batch().drop_columns(["verdicts"]))
    assert "\n" not in str(caught.value)


def earlier_file(folder: Path, version: str, number: int) -> None:
    """Writes a recording of version 3 or 4 with one pair, whose step is counted from 0."""
    (group,) = read_recording(VERSION_3)[1:]
    pair = replace(group.pair, pair_id=f"s{number:06d}.m0.p01")
    batch = groups_to_batch([replace(group, pair=pair, completions=replace(group.completions, pair_id=pair.pair_id))])
    batch = batch if version == "4" else batch.drop_columns(["is_correct"])
    metadata = {**batch.schema.metadata, b"saga_dist.version": version.encode()}
    with pa.ipc.new_file(str(folder / f"step_{number:06d}.arrow"), batch.schema.with_metadata(metadata)) as file:
        file.write_batch(batch.replace_schema_metadata(metadata))


@pytest.mark.parametrize("version", ["3", "4"])
def test_steps_of_earlier_versions_are_counted_from_1(tmp_path: Path, version: str) -> None:
    for number in range(3):
        earlier_file(tmp_path, version, number)
    found = recordings(tmp_path)
    assert sorted(found) == [1, 2, 3]
    assert [read_recording(found[step])[0].pair_id for step in (1, 2, 3)] == [
        f"s00000{step}.m0.p01" for step in (1, 2, 3)
    ]


def test_a_run_that_went_on_with_this_version_has_every_step_once(tmp_path: Path) -> None:
    for number in range(3):  # steps 1 to 3; the checkpoint is that of step 1, so steps 2 and 3 are recorded again
        earlier_file(tmp_path, "4", number)
    (group,) = read_recording(VERSION_3)[1:]
    for step in (2, 3):
        write_recording(recording_path(tmp_path, step), [group])
    assert {step: path.name for step, path in recordings(tmp_path).items()} == {
        1: "step_000000.arrow",
        2: "step_000002.arrow",
        3: "step_000003.arrow",
    }


def test_a_damaged_file_is_listed_and_says_so_when_it_is_read(tmp_path: Path) -> None:
    recording_path(tmp_path, 4).write_bytes(b"nonsense")
    (tmp_path / "notes.arrow").touch()
    assert recordings(tmp_path) == {4: tmp_path / "step_000004.arrow"}
    with pytest.raises(DataError, match="not a recording"):
        read_recording(recordings(tmp_path)[4])
