"""Arrow round trips are bit-exact and zero-copy; anything that is not this version's record is a one-line error."""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from saga_dist.errors import DataError, OutputError, WireError
from saga_dist.types import (
    Completions,
    EncoderTokens,
    ImagePair,
    LogProbMismatch,
    Sampling,
    ScoredGroup,
    TokenGradients,
)
from saga_dist.wire import (
    gradients_from_batch,
    gradients_to_batch,
    groups_from_batch,
    groups_to_batch,
    read_recording,
    tokens_from_batch,
    tokens_to_batch,
    write_recording,
)

NASTY_TEXTS = ("", "\x00", "lone \ud800 and \udfff", "\x1b[31mred", "<|image_pad|>", '{"a": "é漢😀"}', "\r\n\u2028")


def bits(values: torch.Tensor | np.ndarray) -> bytes:
    """The exact bytes, so that NaN payloads and the sign of zero count."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values))
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def over_ipc(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch after a trip through Arrow's file format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_file(sink.getvalue()).get_batch(0)


def random_floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 of arbitrary bits: NaNs with payload, infinities, denormals, both zeros."""
    return generator.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)


def random_tokens(seed: int, dtype: torch.dtype) -> EncoderTokens:
    generator = np.random.default_rng(seed)
    lengths = tuple(int(n) for n in generator.integers(1, 30, 2))
    num_deepstack = int(generator.integers(0, 4))
    width = int(generator.integers(1, 20)) * (1 + num_deepstack)
    raw = random_floats(generator, sum(lengths), width)
    if dtype == torch.bfloat16:
        half = generator.integers(0, 2**16, raw.shape, dtype=np.uint16)
        values = torch.from_numpy(half.view(np.int16)).view(torch.bfloat16)
    else:
        values = torch.from_numpy(raw)
    return EncoderTokens(
        pair_id=f"s{seed:06d}.m0.p00",
        values_NW=values,
        lengths=lengths,
        grids=tuple((1, 2, 2 * n) for n in lengths),
        num_deepstack=num_deepstack,
        encoder_version=int(generator.integers(0, 2**40)),
    )


def random_group(seed: int) -> ScoredGroup:
    generator = np.random.default_rng(seed)
    num = int(generator.integers(1, 6))
    lengths = [int(n) for n in generator.integers(0, 9, num)]
    pair = ImagePair(f"s{seed:06d}.m0.p01", 3, 2**40, int(generator.integers(0, 5)), int(generator.integers(0, 5)))
    return ScoredGroup(
        pair=pair,
        completions=Completions(
            pair_id=pair.pair_id,
            token_ids=tuple(tuple(int(t) for t in generator.integers(0, 151_936, n)) for n in lengths),
            texts=tuple(NASTY_TEXTS[int(k)] for k in generator.integers(0, len(NASTY_TEXTS), num)),
            log_probs=tuple(random_floats(generator, n) for n in lengths),
            finish_reasons=tuple(("stop", "length")[int(k)] for k in generator.integers(0, 2, num)),
            sampling=Sampling(num, 0.7, 0.95, 1024, int(generator.integers(0, 2**63))),
            encoder_version=seed,
        ),
        verdicts=tuple((True, False, None)[int(k)] for k in generator.integers(0, 3, num)),
        rewards_G=generator.integers(0, 2, num).astype(np.float32),
        advantages_G=random_floats(generator, num),
        describes_a=tuple(generator.integers(0, 2, n).astype(bool) for n in lengths),
        describes_b=tuple(generator.integers(0, 2, n).astype(bool) for n in lengths),
        replayed=tuple(random_floats(generator, n) for n in lengths) if seed % 2 else (),
        is_correct_G=generator.integers(0, 2, num).astype(bool),
    )


def assert_same_group(got: ScoredGroup, want: ScoredGroup) -> None:
    assert got.pair == want.pair
    for name in ("pair_id", "token_ids", "texts", "finish_reasons", "sampling", "encoder_version"):
        assert getattr(got.completions, name) == getattr(want.completions, name), name
    assert got.verdicts == want.verdicts
    assert all(verdict is None or type(verdict) is bool for verdict in got.verdicts)
    for mine, theirs in zip(got.completions.log_probs, want.completions.log_probs, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()
    assert [row.tobytes() for row in got.replayed] == [row.tobytes() for row in want.replayed]
    assert all(row.dtype == np.float32 for row in got.replayed)
    for name in ("rewards_G", "advantages_G"):
        assert getattr(got, name).dtype == np.float32
        assert getattr(got, name).tobytes() == getattr(want, name).tobytes()
    assert got.is_correct_G.dtype == np.bool_
    assert got.is_correct_G.tolist() == want.is_correct_G.tolist()
    for name in ("describes_a", "describes_b"):
        for mine, theirs in zip(getattr(got, name), getattr(want, name), strict=True):
            assert mine.dtype == np.bool_
            assert mine.tolist() == theirs.tolist()


# ---------------------------------------------------------------------- encoder tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seed", range(10))
def test_tokens_come_back_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    tokens = random_tokens(seed, dtype)
    got = tokens_from_batch(over_ipc(tokens_to_batch(tokens)))
    assert got.values_NW.dtype == dtype
    assert got.values_NW.shape == tokens.values_NW.shape
    assert bits(got.values_NW) == bits(tokens.values_NW)
    for name in ("pair_id", "lengths", "grids", "num_deepstack", "encoder_version"):
        assert getattr(got, name) == getattr(tokens, name)
    assert isinstance(got.lengths, tuple)
    assert isinstance(got.grids[0], tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_are_not_copied_on_either_side(dtype: torch.dtype) -> None:
    tokens = random_tokens(1, dtype)
    batch = tokens_to_batch(tokens)
    assert batch.column("values").flatten().flatten().buffers()[1].address == tokens.values_NW.data_ptr()
    received = over_ipc(batch)
    buffer = received.column("values").flatten().flatten().buffers()[1]
    assert tokens_from_batch(received).values_NW.data_ptr() == buffer.address
    assert tokens_from_batch(received).values_NW.data_ptr() == tokens_from_batch(received).values_NW.data_ptr()


def test_reading_read_only_memory_gives_no_warning_and_outlives_the_batch() -> None:
    tokens = random_tokens(2, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = over_ipc(tokens_to_batch(tokens))
        got = tokens_from_batch(batch).values_NW
        del batch
    assert bits(got) == bits(tokens.values_NW)


def test_tokens_survive_pickling_of_the_batch_with_buffers_out_of_band() -> None:
    # What Ray does to a batch: small pickle, payload in separate (shared, read-only) buffers.
    tokens = random_tokens(3, torch.bfloat16)
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(tokens_to_batch(tokens), protocol=5, buffer_callback=buffers.append)
    frozen = [bytes(buffer.raw()) for buffer in buffers]
    got = tokens_from_batch(pickle.loads(head, buffers=frozen))
    assert bits(got.values_NW) == bits(tokens.values_NW)


def test_tokens_that_need_a_gradient_or_are_not_contiguous_are_sent_as_plain_values() -> None:
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4).t().requires_grad_()
    tokens = EncoderTokens("p", values, (2, 2), ((1, 2, 4), (1, 2, 4)), 0, 0)
    got = tokens_from_batch(tokens_to_batch(tokens)).values_NW
    assert torch.equal(got, values.detach())
    assert not got.requires_grad


def test_tokens_of_another_dtype_are_refused() -> None:
    tokens = replace(random_tokens(0, torch.float32), values_NW=random_tokens(0, torch.float32).values_NW.double())
    with pytest.raises(WireError, match=r"torch.float64; expected torch.bfloat16 or torch.float32"):
        tokens_to_batch(tokens)


# ---------------------------------------------------------------------- token gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("replayed", [0, 3])
def test_gradients_come_back_bit_for_bit(dtype: torch.dtype, attended: bool, replayed: int) -> None:
    generator = np.random.default_rng(7)
    gradients = TokenGradients(
        pair_id="s000000.m0.p00",
        values_NW=random_tokens(5, dtype).values_NW,
        attention_a_N=torch.from_numpy(random_floats(generator, 4)) if attended else None,
        attention_b_N=torch.from_numpy(random_floats(generator, 6)) if attended else None,
        negative_entropy=-0.1,
        num_attended=3,
        loss=float("nan"),
        num_tokens=360,
        mismatch=LogProbMismatch(
            1e-300, 0.25, (0.5, 2.0), 0.125, tuple(random_floats(generator, length) for length in range(replayed))
        ),
        encoder_version=12,
    )
    got = gradients_from_batch(over_ipc(gradients_to_batch(gradients)))
    assert got.values_NW.dtype == dtype
    assert bits(got.values_NW) == bits(gradients.values_NW)
    for name in ("attention_a_N", "attention_b_N"):
        mine, theirs = getattr(got, name), getattr(gradients, name)
        assert (mine is None and theirs is None) or bits(mine) == bits(theirs)
    for name in ("pair_id", "negative_entropy", "num_attended", "num_tokens", "mismatch", "encoder_version"):
        assert getattr(got, name) == getattr(gradients, name)
    assert [row.tobytes() for row in got.mismatch.replayed] == [row.tobytes() for row in gradients.mismatch.replayed]
    assert np.isnan(got.loss)


# ---------------------------------------------------------------------- scored groups


def test_groups_come_back_bit_for_bit() -> None:
    groups = [random_group(seed) for seed in range(40)]
    assert {text for group in groups for text in group.completions.texts} == set(NASTY_TEXTS)
    got = groups_from_batch(over_ipc(groups_to_batch(groups)))
    assert len(got) == len(groups)
    for mine, theirs in zip(got, groups, strict=True):
        assert_same_group(mine, theirs)


def test_a_sliced_batch_gives_its_own_rows() -> None:
    groups = [random_group(seed) for seed in range(6)]
    got = groups_from_batch(groups_to_batch(groups).slice(2, 3))
    for mine, theirs in zip(got, groups[2:5], strict=True):
        assert_same_group(mine, theirs)


def test_log_probs_look_into_the_batch_and_refuse_writing() -> None:
    group = random_group(11)
    group = replace(
        group,
        completions=replace(
            group.completions,
            log_probs=tuple(np.arange(len(ids), dtype=np.float32) for ids in group.completions.token_ids),
        ),
    )
    batch = over_ipc(groups_to_batch([group]))
    start = batch.column("log_probs").values.values.buffers()[1].address
    address = start
    for array in groups_from_batch(batch)[0].completions.log_probs:
        if array.size:
            assert array.ctypes.data == address
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        address += array.nbytes
    assert address > start


def test_no_groups_is_a_valid_batch() -> None:
    assert groups_from_batch(over_ipc(groups_to_batch([]))) == []


def test_lists_of_unequal_length_are_refused() -> None:
    group = random_group(3)
    with pytest.raises(WireError, match="lists of unequal length"):
        groups_to_batch([replace(group, verdicts=(*group.verdicts, None))])


def test_completions_of_another_pair_are_refused() -> None:
    group = random_group(3)
    with pytest.raises(WireError, match="expected the same pair id"):
        groups_to_batch([replace(group, completions=replace(group.completions, pair_id="other"))])


def test_a_token_id_beyond_its_column_is_refused_with_the_column() -> None:
    group = random_group(3)
    ids = ((2**31,),) * len(group.completions.texts)
    with pytest.raises(WireError, match="column token_ids"):
        groups_to_batch([replace(group, completions=replace(group.completions, token_ids=ids))])


# ---------------------------------------------------------------------- wrong batches


def with_metadata(batch: pa.RecordBatch, **metadata: str) -> pa.RecordBatch:
    return batch.replace_schema_metadata({f"saga_dist.{key}": value for key, value in metadata.items()})


def one_line(caught: pytest.ExceptionInfo[WireError] | pytest.ExceptionInfo[DataError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert message
    return message


def test_another_record_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        groups_from_batch(tokens_to_batch(random_tokens(0, torch.float32)))
    assert one_line(caught) == "Arrow batch: the batch holds EncoderTokens; expected ScoredGroup"
    with pytest.raises(WireError, match=r"holds TokenGradients; expected EncoderTokens|holds ScoredGroup"):
        tokens_from_batch(groups_to_batch([random_group(0)]))


def test_a_batch_of_somebody_else_is_refused() -> None:
    batch = pa.record_batch({"x": [1]})
    for read in (tokens_from_batch, gradients_from_batch, groups_from_batch):
        with pytest.raises(WireError, match="no record of this package"):
            read(batch)


@pytest.mark.parametrize("version", ["2", "6", ""])
def test_another_version_is_refused(version: str) -> None:
    batch = with_metadata(groups_to_batch([random_group(0)]), record="ScoredGroup", version=version)
    with pytest.raises(WireError, match="expected version 5") as caught:
        groups_from_batch(batch)
    one_line(caught)


def test_a_missing_column_is_refused() -> None:
    batch = groups_to_batch([random_group(0)])
    with pytest.raises(WireError, match="columns pair_id") as caught:
        groups_from_batch(batch.drop_columns(["verdicts"]))
    one_line(caught)
    tokens = tokens_to_batch(random_tokens(0, torch.float32))
    with pytest.raises(WireError, match="column values is missing"):
        tokens_from_batch(tokens.drop_columns(["values"]))
    with pytest.raises(WireError, match="columns pair_id, values"):
        tokens_from_batch(tokens.drop_columns(["grids"]))


def test_a_column_of_another_type_is_refused() -> None:
    batch = groups_to_batch([random_group(0)])
    position = batch.schema.get_field_index("image_a")
    wrong = batch.set_column(position, pa.field("image_a", pa.string(), nullable=False), pa.array(["1"]))
    with pytest.raises(WireError, match="column image_a is string; expected int64"):
        groups_from_batch(wrong)
    tokens = tokens_to_batch(random_tokens(0, torch.float32))
    wrong = tokens.set_column(1, "values", pa.array([[1.0]], pa.list_(pa.float64())))
    with pytest.raises(WireError, match="column values is list"):
        tokens_from_batch(wrong)


def test_an_empty_entry_is_refused() -> None:
    batch = groups_to_batch([random_group(0)])
    position = batch.schema.get_field_index("image_a")
    wrong = batch.set_column(position, "image_a", pa.array([None], pa.int64()))
    with pytest.raises(WireError, match="column image_a has empty entries"):
        groups_from_batch(wrong)


def test_tokens_need_exactly_one_row() -> None:
    batch = tokens_to_batch(random_tokens(0, torch.float32))
    with pytest.raises(WireError, match="0 rows; expected one"):
        tokens_from_batch(batch.slice(0, 0))


# ---------------------------------------------------------------------- recordings


def test_a_recording_holds_the_groups_and_leaves_no_other_file(tmp_path: Path) -> None:
    groups = [random_group(seed) for seed in range(5)]
    path = tmp_path / "step_000000.arrow"
    write_recording(path, groups)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000.arrow"]
    for mine, theirs in zip(read_recording(path), groups, strict=True):
        assert_same_group(mine, theirs)
    write_recording(path, groups[:1])
    assert len(read_recording(path)) == 1


def test_a_failed_write_keeps_the_old_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.arrow"
    write_recording(path, [random_group(0)])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_recording(path, [random_group(1), random_group(2)])
    assert [path.name for path in tmp_path.iterdir()] == ["r.arrow"]
    assert len(read_recording(path)) == 1


def test_damaged_recordings_are_one_line_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.arrow"
    with pytest.raises(DataError, match=r"r.arrow: cannot read the recording") as caught:
        read_recording(path)
    one_line(caught)
    write_recording(path, [random_group(seed) for seed in range(3)])
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError) as caught:
            read_recording(path)
        one_line(caught)
