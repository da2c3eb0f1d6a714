"""Copies on a pyarrow filesystem: committed by the manifest alone, found by a new cluster, never in the run's way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from saga_dist.checkpoint import MANIFEST, CheckpointMirror, CheckpointStore, open_mirror
from saga_dist.checkpoint.manifest import seal
from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import CheckpointError, ConfigError

CALLS = (
    "create_dir",
    "delete_dir",
    "delete_file",
    "get_file_info",
    "get_file_info_selector",
    "open_input_stream",
    "open_output_stream",
)


class Dies(BaseException):
    """The process ends here: nothing may catch it."""


class Faulty(fs.FSSpecHandler):
    """A filesystem in memory whose every call first asks ``before(number of the call, name, path)``."""

    def __init__(self) -> None:
        super().__init__(MemoryFileSystem(skip_instance_cache=True))
        self.fs.store, self.fs.pseudo_dirs = {}, [""]  # fsspec shares them between instances
        self.num_calls = 0
        self.before: Callable[[int, str, Any], None] = lambda number, name, path: None
        for name in CALLS:
            setattr(self, name, self._asked(name, getattr(self, name)))

    def _asked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(path: Any, *arguments: Any, **options: Any) -> Any:
            self.num_calls += 1
            self.before(self.num_calls, name, path)
            return call(path, *arguments, **options)

        return asked

    def files(self) -> dict[str, bytes]:
        return {path: self.fs.cat_file(path) for path in self.fs.find("/")}

    def reset(self) -> None:
        self.num_calls, self.before = 0, lambda number, name, path: None


def mirror_on(handler: fs.FileSystemHandler, *, keep: int = 2) -> CheckpointMirror:
    return CheckpointMirror(fs.PyFileSystem(handler), "bucket/run", keep=keep, attempts=3, pause_s=0.0)


def state_of(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(bytes([step]) * 40)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.json").write_text(f'{{"step": {step}}}')

    return write


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def through_uri(folder: Path, *, keep: int = 2) -> CheckpointMirror:
    mirror = open_mirror(f"file://{folder}", run="run", keep=keep)
    assert mirror is not None
    return mirror


# ---------------------------------------------------------------------- copies


def test_every_checkpoint_is_copied_and_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "local", 2, through_uri(tmp_path / "mirror"))
    for step in range(1, 7):
        store.write(step, state_of(step), {"n": step}, best=2 if step >= 2 else -1)
        assert tree(tmp_path / "mirror" / "run") == tree(tmp_path / "local")
    assert store.steps() == through_uri(tmp_path / "mirror").steps() == [2, 5, 6]
    assert (tmp_path / "mirror" / "run" / "best").read_text() == "step_00000002\n"
    assert store.metrics() == {}


@pytest.mark.parametrize("kind", ["subtree", "mock", "handler"])
def test_other_filesystems_take_copies_too(tmp_path: Path, kind: str) -> None:
    filesystems = {
        "subtree": lambda: fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()),
        "mock": fs._MockFileSystem,
        "handler": lambda: fs.PyFileSystem(Faulty()),
    }
    mirror = CheckpointMirror(filesystems[kind](), "bucket/run", keep=1)
    store = CheckpointStore(tmp_path / "local", 1, mirror)
    for step in (1, 2):
        store.write(step, state_of(step), best=1)
    elsewhere = CheckpointStore(tmp_path / "elsewhere", 1, mirror)
    newest = elsewhere.newest()
    assert newest is not None
    assert newest.step == 2
    assert tree(newest.path) == tree(store.path(2))
    assert tree(elsewhere.verified(1).path) == tree(store.path(1))
    assert store.metrics() == {}


def test_a_new_cluster_finds_the_newest_valid_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = CheckpointStore(tmp_path / "first", 3, through_uri(tmp_path / "mirror", keep=3))
    for step in (1, 2, 3):
        first.write(step, state_of(step), {"n": step}, best=1)
    (tmp_path / "mirror" / "run" / "step_00000003" / "a.bin").write_bytes(b"\0" * 40)
    second = CheckpointStore(tmp_path / "second", 3, through_uri(tmp_path / "mirror", keep=3))
    newest = second.newest()
    assert newest is not None
    assert (newest.step, dict(newest.extra), newest.path) == (2, {"n": 2}, second.path(2))
    assert tree(newest.path) == tree(first.path(2))
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"step_00000002"}
    assert "the copy of step 3 is passed over: " in caplog.text and "a.bin: damaged checkpoint" in caplog.text
    assert second.verified(1).extra == {"n": 1}  # the best one follows when it is needed
    second.write(3, state_of(3), {"n": 3}, best=1)  # and the damaged copy is replaced
    assert tree(tmp_path / "mirror" / "run" / "step_00000003") == tree(second.path(3))


def test_a_local_checkpoint_goes_before_the_mirror(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "local", 3, through_uri(tmp_path / "mirror", keep=3))
    for step in (1, 2, 3):
        store.write(step, state_of(step))
    for step in (2, 3):
        (store.path(step) / "a.bin").write_bytes(b"damaged")
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1  # retraining two steps is safe, another life's copies may not be
    (store.path(1) / "a.bin").unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.step == 3
    assert sorted(path.name[:21] for path in (tmp_path / "local").glob("*.damaged-*")) == [
        f"step_{step:08d}.damaged" for step in (1, 2, 3)
    ]


def test_no_valid_copy_anywhere_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "local", 3, through_uri(tmp_path / "mirror"))
    assert store.newest() is None
    store.write(1, state_of(1))
    (tmp_path / "mirror" / "run" / "step_00000001" / "a.bin").unlink()
    fresh = CheckpointStore(tmp_path / "fresh", 3, through_uri(tmp_path / "mirror"))
    with pytest.raises(CheckpointError, match=r"local:.*/run: no checkpoint is valid; restore a step_\* folder"):
        fresh.newest()
    (store.path(1) / "a.bin").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is valid; the newest: .*the file is missing; restore"):
        store.newest()
    assert store.has(1)


def test_a_copy_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / "run" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(seal(1, {"../../outside": {"bytes": 1, "sha256": ""}}, {}))
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        CheckpointStore(tmp_path / "local", 1, through_uri(tmp_path / "mirror")).newest()
    assert not (tmp_path / "outside").exists()


def test_a_missing_copy_is_made_up_for(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "local", 2).write(1, state_of(1))  # a crash before the upload, or no mirror until now
    store = CheckpointStore(tmp_path / "local", 2, through_uri(tmp_path / "mirror"))
    store.write(2, state_of(2), best=1)
    assert tree(tmp_path / "mirror" / "run") == tree(tmp_path / "local")
    handler = Faulty()
    again = CheckpointStore(tmp_path / "local", 2, mirror_on(handler))
    again.finalize(2, best=-1)
    written = sum(path.endswith(MANIFEST) for path in handler.files())
    calls = handler.num_calls
    again.finalize(2, best=-1)
    assert written == 1
    assert handler.num_calls - calls < calls  # nothing is sent twice


# ---------------------------------------------------------------------- trouble


def test_an_upload_cut_off_at_any_call_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    steps_found = []
    for cut in range(1, 200):
        handler = Faulty()
        store = CheckpointStore(tmp_path / str(cut) / "local", 1, mirror_on(handler, keep=1))
        store.write(1, state_of(1))
        handler.reset()

        def die(number: int, name: str, path: Any, cut: int = cut, handler: Faulty = handler) -> None:
            if number == cut:
                if name == "open_output_stream":  # torn: the object is there, its content is not
                    handler.fs.pipe_file(path, b"{")
                raise Dies

        handler.before = die
        try:
            store.write(2, state_of(2))
            died = False
        except Dies:
            died = True
        handler.reset()
        newest = CheckpointStore(tmp_path / str(cut) / "new", 1, mirror_on(handler, keep=1)).newest()
        assert newest is not None
        assert tree(newest.path) == {
            **tree(store.path(newest.step)),
            **({} if newest.step == 2 else {"a.bin": bytes([1]) * 40, "inner/b.json": b'{"step": 1}'}),
            MANIFEST: (newest.path / MANIFEST).read_bytes(),
        }
        steps_found.append(newest.step)
        store = CheckpointStore(tmp_path / str(cut) / "local", 1, mirror_on(handler, keep=1))  # the same command again
        store.write(3, state_of(3))
        assert {path.split("/")[3] for path in handler.files()} == {"step_00000003", "latest"}
        if not died:
            break
    assert len(steps_found) > 12
    assert steps_found == sorted(steps_found)
    assert set(steps_found) == {1, 2}


def test_a_short_trouble_is_overcome_and_a_long_one_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Faulty()
    store = CheckpointStore(tmp_path / "local", 2, mirror_on(handler))

    def every_fourth_call_fails(number: int, name: str, path: Any) -> None:
        if number % 4 == 1:
            raise OSError("connection reset")

    handler.before = every_fourth_call_fails
    store.write(1, state_of(1))
    assert store.metrics() == {}
    assert caplog.records == []
    reset_calls = handler.num_calls

    def none_answers(number: int, name: str, path: Any) -> None:
        raise OSError("connection\nrefused")

    handler.before = none_answers
    assert store.write(2, state_of(2)) == store.path(2)
    assert handler.num_calls - reset_calls == 3  # tries of the first call, then no more
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(
        "the mirror did not take step 2, the local checkpoint is there: checkpoint mirror py::fsspec"
    )
    assert "(connection refused; 3 tries); check checkpoint.mirror, the network" in warning
    assert store.metrics() == {"checkpoint/mirror_failed": 1.0}
    handler.reset()
    store.write(3, state_of(3), best=2)  # the best one is made up for
    assert mirror_on(handler).steps() == [2, 3]
    assert store.metrics() == {}


def test_a_mirror_that_does_not_answer_is_no_empty_mirror(tmp_path: Path) -> None:
    handler = Faulty()
    CheckpointStore(tmp_path / "first", 2, mirror_on(handler)).write(1, state_of(1))

    def none_answers(number: int, name: str, path: Any) -> None:
        raise OSError("no route to host")

    handler.before = none_answers
    with pytest.raises(CheckpointError, match=r"cannot list \(no route to host; 3 tries\); check checkpoint\.mirror"):
        CheckpointStore(tmp_path / "second", 2, mirror_on(handler)).newest()


def test_an_object_that_arrives_short_is_sent_again(tmp_path: Path) -> None:
    handler = Faulty()
    real, sizes = handler.get_file_info, []

    def shortened(paths: list[str]) -> list[fs.FileInfo]:
        infos = real(paths)
        if paths[0].endswith("a.bin") and not sizes:
            sizes.append(infos[0].size)
            return [fs.FileInfo(paths[0], fs.FileType.File, size=7)]
        return infos

    handler.get_file_info = shortened  # type: ignore[method-assign]
    store = CheckpointStore(tmp_path / "local", 2, mirror_on(handler))
    store.write(1, state_of(1))
    assert sizes == [40]
    assert store.metrics() == {}
    assert mirror_on(handler).steps() == [1]


# ---------------------------------------------------------------------- configuration


def config_with(mirror: str) -> RunConfig:
    return parse_config({"data": {"layout": "birds", "image_size": 80}, "checkpoint": {"mirror": mirror}}, where="test")


def test_the_mirror_is_a_uri_and_decides_nothing(tmp_path: Path) -> None:
    assert config_with("").checkpoint.mirror == ""
    assert open_mirror("", run="run", keep=1) is None
    assert config_with("s3://bucket/runs?region=eu-west-1").digest() == config_with("").digest()
    for wrong in (str(tmp_path), "bucket", "s3://"):
        with pytest.raises(ConfigError, match="checkpoint.mirror"):
            config_with(wrong)
    with pytest.raises(ConfigError, match=r"checkpoint.mirror = 'nonsense://x': Unrecognized .*; expected a URI that"):
        open_mirror("nonsense://x", run="run", keep=1)


def test_a_mirror_where_nothing_can_be_written_is_counted(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("a file, not a folder")
    mirror = CheckpointMirror(fs.LocalFileSystem(), f"{tmp_path}/mirror/run", keep=2, pause_s=0.0)
    store = CheckpointStore(tmp_path / "local", 2, mirror)
    store.write(1, state_of(1))
    assert store.metrics() == {"checkpoint/mirror_failed": 1.0}
    assert store.has(1)
