"""Recordings of rollouts that are damaged, of something else or of another version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config
from saga_dist.wire import recording_path, write_recording

TRAIN = "train run.toml --from-recording rec"
STEPS = 2


def recorded(spoil: Callable[[Path], object], step: int = STEPS) -> Callable[[Workspace], None]:
    """Returns what writes a configuration and a run ``rec`` with a recording of each step, of which one is spoilt."""

    def prepare(workspace: Workspace) -> None:
        config = load_config(workspace.write_config())
        folder = workspace.folder / "rec" / "rollouts"
        folder.mkdir(parents=True)
        (folder.parent / "config.json").write_text(config.model_dump_json())
        for number in range(1, STEPS + 1):
            write_recording(recording_path(folder, number), [])
        spoil(recording_path(folder, step))

    return prepare


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def a_text(path: Path) -> None:
    path.write_text("step,reward\n")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_table_of_its_own(path: Path) -> None:
    batch = pa.record_batch({"reward": [1.0]})
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)


def with_metadata(**metadata: str) -> Callable[[Path], None]:
    """Returns what gives a recording other metadata."""

    def spoil(path: Path) -> None:
        schema = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).schema
        changed = {f"saga_dist.{key}".encode(): value.encode() for key, value in metadata.items()}
        with pa.ipc.new_file(str(path), schema.with_metadata({**schema.metadata, **changed})):
            pass

    return spoil


def without_a_column(path: Path) -> None:
    schema = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).schema
    with pa.ipc.new_file(str(path), schema.remove(schema.get_field_index("verdicts"))):
        pass


NAME = "step_000002.arrow: "
FIX = "restore the file, or record the run again"
SPOILT = (
    ("a recording that is cut off", "damaged recording", cut_off, (NAME, "a damaged one", FIX)),
    ("a recording without a byte", "damaged recording", lambda path: path.write_bytes(b""), (NAME, "not a recording")),
    ("a text with the name of a recording", "foreign recording", a_text, (NAME, "not a recording")),
    ("a folder with the name of a recording", "damaged recording", a_folder, (NAME, "cannot read", FIX)),
    (
        "an Arrow file of something else as recording",
        "foreign recording",
        a_table_of_its_own,
        (NAME, "no record of this package", "expected ScoredGroup"),
    ),
    (
        "another record as recording",
        "foreign recording",
        with_metadata(record="EncoderTokens"),
        (NAME, "holds EncoderTokens; expected ScoredGroup"),
    ),
    (
        "a recording of a later version",
        "foreign recording",
        with_metadata(version="99"),
        (NAME, "version 99; expected version 5", "the version of saga_dist that wrote it"),
    ),
    ("a recording without one of its columns", "foreign recording", without_a_column, (NAME, "columns pair_id")),
)
ROWS = [
    *(
        BadInput(f"{name}, before the training", kind, TRAIN, says, recorded(spoil))
        for name, kind, spoil, says in SPOILT
    ),
    *(
        BadInput(
            f"{what} of a recording that is cut off", "damaged recording that is read", act, says, recorded(cut_off)
        )
        for what, act, says in (
            ("a plan", f"{TRAIN} --dry-run", (NAME, FIX)),
            ("a page", "rollouts rec --out page.html", (NAME, FIX)),
            ("a list", "rollouts rec --step 2", (NAME, FIX)),
            ("a report", "report rec", (NAME, FIX)),
        )
    ),
]
