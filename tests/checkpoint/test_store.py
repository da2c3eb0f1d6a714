"""A checkpoint is whole or absent at every moment, and no flipped byte goes unnoticed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import saga_dist.checkpoint.manifest
import saga_dist.checkpoint.store
import saga_dist.checkpoint.writing
import saga_dist.utils.atomic_io
from saga_dist.checkpoint import MANIFEST, CheckpointStore, verify
from saga_dist.checkpoint.state_files import save_tensors
from saga_dist.errors import CheckpointError, DamagedCheckpoint

EXTRA = {"config_digest": "abc", "selection": {"step": 3, "recall_at_1": 0.1 + 0.2, "history": [(1, 0.5)]}}


def write_state(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(range(40)))
    (folder / "inner").mkdir()
    (folder / "inner" / "b.json").write_text('{"x": 1}')


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def aside_of(folder: Path, step: int) -> Path:
    (found,) = folder.glob(f"step_{step:08d}.damaged-*")
    return found


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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


def test_a_valid_checkpoint_of_the_step_is_kept_and_a_damaged_one_set_aside(tmp_path: Path) -> None:
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
    assert names(tmp_path) == {"step_00000001", "latest", aside_of(tmp_path, 1).name}
    assert (aside_of(tmp_path, 1) / "a.bin").read_bytes() == b"damaged"


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep = 0; expected at least 1"):
        CheckpointStore(tmp_path, keep=0)


# ---------------------------------------------------------------------- damage


def small_checkpoint(folder: Path) -> Path:
    def write(state: Path) -> None:
        write_state(state)
        save_tensors(state / "t.safetensors", {"w": torch.arange(6.0)})

    return CheckpointStore(folder, keep=1).write(1, write, EXTRA)


def test_every_flipped_byte_of_every_file_is_noticed(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path)
    generator = np.random.default_rng(0)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert {file.name for file in files} == {"a.bin", "b.json", "t.safetensors", MANIFEST}
    num_flips = 0
    for file in files:
        whole = file.read_bytes()
        for position in range(len(whole)):
            for change in (1 << int(generator.integers(8)), int(generator.integers(1, 256))):  # one bit, and any byte
                damaged = bytearray(whole)
                damaged[position] ^= change
                file.write_bytes(damaged)
                assert refused(path).startswith(f"{file}: damaged checkpoint: ")
                num_flips += 1
        file.write_bytes(whole)
        assert verify(path).step == 1
    assert num_flips == 2 * sum(file.stat().st_size for file in files)


def test_every_truncation_every_longer_and_every_missing_file_is_noticed(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
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


def test_a_damaged_newest_is_set_aside_for_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    paths = [store.write(step, write_state) for step in (1, 2, 3, 4)]
    damage(paths[2] / "inner" / "b.json")
    (paths[3] / MANIFEST).unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.step == 2
    assert store.steps() == [1, 2]
    assert (aside_of(tmp_path, 3) / "a.bin").read_bytes() == bytes(range(40))  # nothing is deleted
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{paths[3]}/{MANIFEST}: damaged checkpoint: cannot be read (No such file")
    assert warnings[1] == (
        f"{paths[2]}/inner/b.json: damaged checkpoint: its content does not match its sha256; "
        f"set aside as {aside_of(tmp_path, 3).name}; step 2 is used instead"
    )
    caplog.clear()
    store.newest()  # and that is told once
    assert caplog.records == []
    store.write(3, write_state)
    assert store.steps() == [1, 2, 3]
    assert aside_of(tmp_path, 3).is_dir()


def test_when_none_is_valid_nothing_is_touched_and_nothing_starts_afresh(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for step in (1, 2):
        damage(store.write(step, write_state) / "a.bin")
    before = names(tmp_path)
    for _ in range(2):  # the same command again says the same again
        with pytest.raises(CheckpointError) as caught:
            store.newest()
        assert str(caught.value) == (
            f"{tmp_path}: no checkpoint is valid; the newest: {tmp_path}/step_00000002/a.bin: damaged checkpoint: its "
            "content does not match its sha256; restore a step_* folder from a copy, or choose a new --run-dir"
        )
        assert names(tmp_path) == before


def test_an_unknown_format_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    store.write(1, write_state)
    with monkeypatch.context() as patch:
        patch.setattr(saga_dist.checkpoint.manifest, "FORMAT", 2)
        store.write(2, write_state)
    with pytest.raises(CheckpointError, match="format 2; expected format 1"):  # it would be lost by falling back
        store.newest()
    assert store.steps() == [1, 2]


def test_one_step_is_verified_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    path = store.write(1, write_state)
    assert store.verified(1).path == path
    damage(path / "a.bin")
    with pytest.raises(CheckpointError, match=r"a\.bin: damaged checkpoint: .*; restore it from a copy, or choose"):
        store.verified(1)
    with pytest.raises(CheckpointError, match="step_00000007/manifest.json: damaged checkpoint: cannot be read"):
        store.verified(7)
    assert store.steps() == [1]


def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=1).write(1, write_state)
    for name in ("../outside", "/etc/hosts", "inner/../../outside"):
        files = {name: {"bytes": 0, "sha256": ""}}
        (path / MANIFEST).write_bytes(saga_dist.checkpoint.manifest.seal(1, files, {}))
        with pytest.raises(DamagedCheckpoint, match="not inside its folder"):
            verify(path)


def test_a_future_format_and_a_renamed_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    with monkeypatch.context() as patch:
        patch.setattr(saga_dist.checkpoint.manifest, "FORMAT", 2)
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


# ---------------------------------------------------------------------- a full disk


def write_much(folder: Path) -> None:
    save_tensors(folder / "t.safetensors", {"w": torch.ones(60_000)})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 400 kB: room for one checkpoint of 240 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mount needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_old_checkpoint_and_its_room(small_disk: Path) -> None:
    store = CheckpointStore(small_disk, keep=1)
    store.write(1, write_much)
    for _ in range(3):
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            store.write(2, write_much)
        assert "\n" not in str(caught.value)
        newest = store.newest()
        assert newest is not None
        assert newest.step == 1
        assert names(small_disk) == {"step_00000001", "latest"}  # half a checkpoint would keep the disk full
    store.write(2, write_state)  # a smaller one fits


def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.write(1, write_state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step_00000002: cannot write the checkpoint .File too large."):
            store.write(2, write_much)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == {"step_00000001", "latest"}
    assert verify(store.path(1)).step == 1


def test_a_save_that_can_wait_is_counted_while_there_is_an_older_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=3)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):  # nothing to fall back to
        store.try_write(1, full)
    assert store.try_write(1, write_state)
    assert store.metrics() == {}
    assert not store.try_write(2, full)
    assert not store.try_write(3, full)
    assert "No space left on device); free space" in caplog.records[-1].getMessage()
    assert store.metrics() == {"checkpoint/failed": 2.0}
    assert store.metrics() == {}
    damage(store.path(1) / "a.bin")
    with pytest.raises(CheckpointError, match="No space left"):  # the older one is worth nothing
        store.try_write(4, full)


# ---------------------------------------------------------------------- crashes


def die_at_line(number: int, action: Callable[[], Any]) -> bool:
    """Runs ``action`` in a forked process that vanishes at its n-th line of our code; False when it got to the end."""
    child = os.fork()
    if child == 0:
        modules, count = (saga_dist.checkpoint.store, saga_dist.checkpoint.writing, saga_dist.utils.atomic_io), 0
        files = {module.__file__ for module in modules}

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


@pytest.mark.integration
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)], ids="every {} lines".format)
def test_a_crash_at_any_line_of_a_write_leaves_a_valid_checkpoint(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a dead process loses nothing; saves half the time
    outcomes: list[int] = []
    CheckpointStore(tmp_path / "before", keep=1).write(1, write_state)
    for number in range(0, 10_000, every):
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
    assert len(outcomes) > 50 / every
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
        assert re.search(
            r"step_00000002: cannot (write|tidy up after) the checkpoint \(No space left on device\); free space",
            message,
        )
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
