"""A checkpoint is whole or absent at every moment, and no flipped byte goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import saga_dist.checkpoint
import saga_dist.files
from saga_dist.checkpoint import MANIFEST, CheckpointStore, verify
from saga_dist.errors import CheckpointError
from saga_dist.state_files import load_optimizer, load_tensors, save_optimizer, save_tensors

EXTRA = {"config_digest": "abc", "selection": {"step": 3, "recall_at_1": 0.1 + 0.2, "history": [(1, 0.5)]}}


def write_state(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(range(40)))
    (folder / "inner").mkdir()
    (folder / "inner" / "b.json").write_text('{"x": 1}')


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# ---------------------------------------------------------------------- writing and reading


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    assert store.newest() is None
    assert not store.has(5)
    path = store.write(5, write_state, EXTRA)
    assert path == store.path(5) == tmp_path / "checkpoints" / "step_00000005"
    assert store.has(5)
    info = CheckpointStore(tmp_path / "checkpoints", keep=3).newest()
    assert info is not None
    assert (info.path, info.step) == (path, 5)
    assert info.extra == json.loads(json.dumps(EXTRA))
    assert info.versions["torch"] == torch.__version__
    assert (path / "a.bin").read_bytes() == bytes(range(40))
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["files"]["inner/b.json"]["bytes"] == 8
    assert set(manifest["files"]) == {"a.bin", "inner/b.json"}
    assert manifest["format"] == 1
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"


def test_old_ones_go_but_never_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 7):
        store.write(step, write_state, best=2 if step >= 2 else None)
    assert names(tmp_path) == {"step_00000002", "step_00000005", "step_00000006", "latest", "best"}
    assert store.best() == store.path(2)
    CheckpointStore(tmp_path, keep=1).write(7, write_state)  # the mark outlives the process
    assert names(tmp_path) == {"step_00000002", "step_00000007", "latest", "best"}
    store.write(8, write_state, best=7)
    assert names(tmp_path) == {"step_00000007", "step_00000008", "latest", "best"}
    assert store.steps() == [7, 8]


def test_a_step_before_any_evaluation_has_no_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.write(1, write_state, best=-1)
    assert store.best() is None


def test_steps_beyond_eight_digits_are_in_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for step in (99_999_999, 100_000_000, 7):
        store.write(step, write_state)
    assert store.steps() == [7, 99_999_999, 100_000_000]
    newest = store.newest()
    assert newest is not None
    assert newest.step == 100_000_000


def test_a_valid_checkpoint_of_the_step_is_kept_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    path = store.write(1, write_state)
    calls = []
    store.write(1, calls.append)
    assert calls == []
    (path / "a.bin").write_bytes(b"damaged")
    store.write(1, write_state)
    assert verify(path).step == 1
    assert (path / "a.bin").read_bytes() == bytes(range(40))
    store.clean()
    assert names(tmp_path) == {"step_00000001", "latest"}


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep = 0; expected at least 1"):
        CheckpointStore(tmp_path, keep=0)


# ---------------------------------------------------------------------- damage


def test_every_flipped_byte_of_every_file_is_noticed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)

    def write(folder: Path) -> None:
        write_state(folder)
        save_tensors(folder / "t.safetensors", {"w": torch.arange(6.0)})

    path = store.write(1, write, EXTRA)
    generator = np.random.default_rng(0)
    num_flips = 0
    for file in sorted(path.rglob("*.*")):
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= int(generator.integers(1, 256))
            file.write_bytes(damaged)
            message = refused(path)
            assert message.startswith(f"{file}: damaged checkpoint: ")
            num_flips += 1
        file.write_bytes(whole)
        assert verify(path).step == 1
    assert num_flips > 900
    assert "delete the folder" in message


def test_every_truncation_and_every_missing_file_is_noticed(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).write(1, write_state, EXTRA)
    for file in sorted(path.rglob("*.*")):
        whole = file.read_bytes()
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            assert refused(path).startswith(f"{file}: damaged checkpoint: ")
        file.write_bytes(whole + b"\n")
        refused(path)
        file.unlink()
        assert "missing" in (message := refused(path)) or "No such file" in message
        file.write_bytes(whole)
    assert verify(path).step == 1


def test_the_message_for_a_damaged_newest_names_file_and_way_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.write(1, write_state)
    path = store.write(2, write_state)
    (path / "inner" / "b.json").write_text('{"x": 2}')
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert str(caught.value) == (
        f"{path}/inner/b.json: damaged checkpoint: its content does not match its sha256; "
        "delete the folder step_00000002 to fall back to the checkpoint before it"
    )
    shutil.rmtree(path)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1


def test_a_future_format_and_a_renamed_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    with monkeypatch.context() as patch:
        patch.setattr(saga_dist.checkpoint, "FORMAT", 2)
        path = store.write(1, write_state)
    assert "manifest.json: format 2; expected format 1; read it with the version" in refused(path)
    store.write(2, write_state).rename(store.path(9))
    assert "holds step 2; give the folder its own name back" in refused(store.path(9))


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"sha256": NaN}', "[" * 100_000, '{"format": 1, "format": 1}']
)
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: str) -> None:
    path = CheckpointStore(tmp_path, keep=1).write(1, write_state)
    (path / MANIFEST).write_text(content)
    assert "damaged checkpoint" in refused(path)


# ---------------------------------------------------------------------- crashes


def die_at_line(number: int, action: Callable[[], Any]) -> bool:
    """Runs ``action`` in a forked process that vanishes at its n-th line of our code; False when it got to the end."""
    child = os.fork()
    if child == 0:
        files, count = {saga_dist.checkpoint.__file__, saga_dist.files.__file__}, 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in files:
                return None
            count += event == "line"
            if count > number:
                os._exit(9)
            return trace

        status = 1
        try:
            sys.settrace(trace)
            action()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_a_crash_at_any_line_of_a_write_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a dead process loses nothing; saves half the time
    outcomes: list[int] = []
    CheckpointStore(tmp_path / "before", keep=1).write(1, write_state)
    for number in range(10_000):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        store = CheckpointStore(folder, keep=1)
        died = die_at_line(number, lambda store=store: store.write(2, write_state))
        newest = CheckpointStore(folder, keep=1).newest()
        assert newest is not None
        outcomes.append(newest.step)
        CheckpointStore(folder, keep=1).write(3, write_state)
        assert names(folder) == {"step_00000003", "latest"}
        if not died:
            break
    assert len(outcomes) > 50
    assert outcomes == sorted(outcomes)  # once the new one is there, it stays
    assert set(outcomes) == {1, 2}


def test_a_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.write(1, write_state)

    def fail(folder: Path) -> None:
        write_state(folder)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.write(2, fail)
    assert names(tmp_path) == {"step_00000001", "latest"}
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "mkdir"])
def test_a_failing_system_call_is_one_line_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = getattr(os, call)
    for number in range(100):
        folder = tmp_path / str(number)
        store = CheckpointStore(folder, keep=1)
        store.write(1, write_state)
        count = 0

        def failing(*arguments: Any, number: int = number, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > number:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        failed = False
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                store.write(2, lambda state: (state / "a.bin").write_bytes(b"x"))
            except CheckpointError as error:
                failed = True
                message = str(error)
        newest = store.newest()
        assert newest is not None
        if not failed:
            break
        assert "step_00000002: cannot write the checkpoint (No space left on device); free space" in message
        assert "\n" not in message
    assert number > 0


def test_files_are_on_disk_before_the_name_and_the_name_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.write(1, write_state)
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split('.tmp')[0]}")
        real_fsync(descriptor)

    def rename(source: Path, target: Path, **options: Any) -> None:
        events.append(f"rename {Path(source).name.split('.tmp')[0]}")
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.write(2, write_state)
    renamed, removed = events.index("rename step_00000002"), events.index("rename step_00000001")
    before, between = set(events[:renamed]), events[renamed:removed]
    assert before >= {f"fsync {name}" for name in ("a.bin", "b.json", MANIFEST, "inner", "step_00000002")}
    assert f"fsync {tmp_path.name}" in between


def test_links_in_the_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a plain file"):
        CheckpointStore(tmp_path, keep=1).write(1, lambda folder: (folder / "link").symlink_to("/etc/hosts"))


# ---------------------------------------------------------------------- tensors


def test_tensors_of_every_kind_come_back_exactly(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {
        "float32": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "bfloat16": torch.randn(3, 4).bfloat16(),
        "float64": torch.randn(2, dtype=torch.float64),
        "int64": torch.tensor(2**62),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 5).t(),
        "expanded": torch.ones(1).expand(4),
        "shared_a": shared,
        "shared_b": shared[3:9],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        got, want = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (loaded[name], tensor))
        assert torch.equal(got, want), name


def test_damaged_tensor_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match=r"t.safetensors: cannot read the tensors"):
        load_tensors(path)
    save_tensors(path, {"w": torch.ones(4)})
    whole = path.read_bytes()
    for size in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"t.safetensors: cannot read the tensors") as caught:
            load_tensors(path)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- optimizer


def make_optimizer(seed: int, widths: tuple[int, ...] = (3, 4)) -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(2, width, generator=generator)) for width in widths]
    groups = [
        {"params": parameters[:1], "lr": 1e-3, "initial_lr": 0.1 + 0.2},
        {"params": parameters[1:], "lr": 1e-2, "weight_decay": 0.0, "betas": (0.8, 0.95)},
    ]
    return parameters, torch.optim.AdamW(groups, weight_decay=0.01)


def train(parameters: list[torch.nn.Parameter], optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_two_steps_resume_two_equals_four(tmp_path: Path) -> None:
    straight, optimizer = make_optimizer(0)
    train(straight, optimizer, range(4))
    first, first_optimizer = make_optimizer(0)
    train(first, first_optimizer, range(2))
    save_optimizer(tmp_path, first_optimizer)
    assert names(tmp_path) == {"optimizer.safetensors", "optimizer.json"}
    second, second_optimizer = make_optimizer(99)
    train(second, second_optimizer, range(7, 9))  # state that must be overwritten
    with torch.no_grad():
        for mine, theirs in zip(second, first, strict=True):
            mine.copy_(theirs)
    load_optimizer(tmp_path, second_optimizer)
    assert second_optimizer.state_dict()["param_groups"] == first_optimizer.state_dict()["param_groups"]
    train(second, second_optimizer, range(2, 4))
    for mine, theirs in zip(second, straight, strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimizer_that_never_stepped_can_be_saved(tmp_path: Path) -> None:
    _, fresh = make_optimizer(0)
    save_optimizer(tmp_path, fresh, "other")
    parameters, used = make_optimizer(0)
    train(parameters, used, range(1))
    load_optimizer(tmp_path, used, "other")
    assert used.state_dict()["state"] == {}


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    parameters, optimizer = make_optimizer(0)
    train(parameters, optimizer, range(1))
    save_optimizer(tmp_path, optimizer)
    with pytest.raises(CheckpointError, match=r"of parameter 1 has shape \(2, 4\); expected \(2, 5\), as in this run"):
        load_optimizer(tmp_path, make_optimizer(0, (3, 5))[1])
    with pytest.raises(CheckpointError, match=r"parameter groups of \[1, 1\] tensors; expected \[1, 2\]"):
        load_optimizer(tmp_path, make_optimizer(0, (3, 4, 5))[1])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"param_groups": []}', "\xff"])
def test_a_damaged_optimizer_file_is_one_line(tmp_path: Path, content: str) -> None:
    save_optimizer(tmp_path, make_optimizer(0)[1])
    (tmp_path / "optimizer.json").write_text(content, "latin-1")
    with pytest.raises(CheckpointError, match=r"optimizer.json: cannot read the optimizer state") as caught:
        load_optimizer(tmp_path, make_optimizer(0)[1])
    assert "\n" not in str(caught.value)
