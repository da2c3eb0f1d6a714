"""Files and directories that are full, read-only, gone, of somebody else or not what they seem."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from bad_inputs.row import BadInput, Workspace
from safetensors import SafetensorError

from saga_dist.metrics.log import JsonLines
from saga_dist.models.placement import checked_device
from saga_dist.retrieval.first_hits import FirstHits, save_hits
from saga_dist.retrieval.results import Results
from saga_dist.training.identity import refuse_other_identity, refuse_other_recording
from saga_dist.utils import directory_owner
from saga_dist.utils.atomic_io import new_folder, sha256_of_input, write_atomic
from saga_dist.utils.directory_owner import OWNER_NAME, owned_directory
from saga_dist.utils.output_files import make_folder, write_tensors
from saga_dist.utils.owner_record import Owner
from saga_dist.wire import RunIdentity, write_recording

TABLE = """
title = "One row"
config = "run.toml"
seeds = [0]
baseline = "metric"
[[variant]]
name = "metric"
label = "metric loss"
set = ["objective.lambda_lm=0", "objective.lambda_kl=0"]
"""
IDENTITY = RunIdentity(backbone="b" * 64, tower="t" * 64, split="s" * 64, code="1.0")
LONG = "n" * 300


def stand_in_inputs(workspace: Workspace) -> None:
    """Writes a configuration, a table, a folder of images and what looks like an encoder until it is loaded."""
    workspace.write_config()
    (workspace.folder / "table.toml").write_text(TABLE)
    (workspace.folder / "photos").mkdir()
    (workspace.folder / "photos" / "a.jpg").write_bytes(b"")
    (workspace.folder / "encoder").mkdir()
    for name in ("manifest.json", "model.safetensors"):
        (workspace.folder / "encoder" / name).touch()


# ---------------------------------------------------------------------- other writers

OTHER = Owner("0" * 32, "another boot", "gpu7", 4242, "2026-01-02 03:04:05 UTC", "saga-dist train")


def held(name: str) -> Callable[[Workspace], None]:
    """Writes the inputs; another process holds the owner's file ``name``."""

    def prepare(workspace: Workspace) -> None:
        stand_in_inputs(workspace)
        file = workspace.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(OTHER.content(1))
        # flock tells open files apart, not processes; closed with this process, as by one that still runs.
        fcntl.flock(os.open(file, os.O_RDWR), fcntl.LOCK_EX)

    return prepare


def beats_on_another_host(workspace: Workspace) -> None:
    file = workspace.folder / OWNER_NAME
    file.write_bytes(OTHER.content(1))
    workspace.patch.setattr(directory_owner.time, "sleep", lambda seconds: file.write_bytes(OTHER.content(2)))


def claim(workspace: Workspace) -> None:
    with owned_directory(workspace.folder, option="--run-dir"):
        pass


def write_after_removal(workspace: Workspace) -> None:
    run = workspace.folder / "run"
    with owned_directory(run, option="--run-dir"):
        (run / OWNER_NAME).unlink()
        run.rmdir()
        make_folder(run / "rollouts")


OWNED = [
    BadInput(
        f"{what} that another process is writing",
        "another process is the writer",
        command,
        ("is being written by host gpu7, pid 4242, started 2026-01-02 03:04:05 UTC (saga-dist train)", option),
        held(file),
    )
    for what, command, option, file in (
        ("a run directory", "train run.toml --run-dir out", "choose another --run-dir", f"out/{OWNER_NAME}"),
        ("a directory of rollouts", "rollout run.toml --run-dir out", "choose another --run-dir", f"out/{OWNER_NAME}"),
        ("a demo's directory", "demo --runtime serial --run-dir out", "another --run-dir", f"out/{OWNER_NAME}"),
        ("a table's directory", "sweep table.toml --out out", "choose another --out", f"out/{OWNER_NAME}"),
        ("an embedding file", "embed encoder photos --out e.arrow", "another --out", f".e.arrow{OWNER_NAME}"),
        ("an index", "index e.arrow --out index", "another --out", f".index{OWNER_NAME}"),
        ("an exported encoder", "export encoder --out hf", "another --out", f".hf{OWNER_NAME}"),
    )
]
TAKEN = [
    BadInput(
        "an owner on another host whose counter goes on",
        "another process is the writer",
        claim,
        ("is being written by host gpu7, pid 4242",),
        beats_on_another_host,
    ),
    BadInput(
        "a run directory that was removed while the run wrote to it",
        "a vanished place",
        write_after_removal,
        ("run: was removed, or another process took it over", "choose another --run-dir"),
    ),
]

# ---------------------------------------------------------------------- places that go with a Ray job


def in_package_cache(workspace: Workspace) -> None:
    """Writes the inputs into what looks like Ray's copy of a working directory, and goes there."""
    stand_in_inputs(workspace)
    copy = workspace.folder / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    for path in workspace.folder.iterdir():
        if path.name != "session":
            path.rename(copy / path.name)
    workspace.patch.chdir(copy)


CACHED = [
    BadInput(
        f"{what} in the copy of a job's working directory",
        "Ray's copy of the working directory",
        command,
        (
            "_ray_pkg_0123456789abcdef",
            "Ray's copy of the job's working directory",
            f"give {option} as an absolute path",
        ),
        in_package_cache,
    )
    for what, command, option in (
        ("the default run directory", "train run.toml", "--run-dir"),
        ("a run directory of a dry run", "train run.toml --run-dir mine --dry-run", "--run-dir"),
        ("a configured run directory", "train run.toml run.directory=mine", "--run-dir"),
        ("a directory of rollouts", "rollout run.toml", "--run-dir"),
        ("a table's directory", "sweep table.toml", "--out"),
        ("an embedding file", "embed encoder photos --out e.arrow", "--out"),
        ("a file of results", "evaluate runs/mine --json results.json", "--json"),
    )
]

# ---------------------------------------------------------------------- disks


def disk(number: int) -> Callable[[Workspace], None]:
    """Makes ``out``, below which every file opened for writing and every new folder is an OSError of this number."""

    def prepare(workspace: Workspace) -> None:
        (workspace.folder / "out").mkdir()
        real, make = io.open, os.mkdir

        def fail(path: Any) -> None:
            if isinstance(path, str | os.PathLike) and (workspace.folder / "out") in Path(path).absolute().parents:
                raise OSError(number, os.strerror(number), os.fspath(path))

        def failing_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                fail(path)
            return real(path, mode, *arguments, **options)

        def failing_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
            fail(path)
            make(path, *arguments, **options)

        workspace.patch.setattr(io, "open", failing_open)
        workspace.patch.setattr(os, "mkdir", failing_mkdir)

    return prepare


FULL, QUOTA, READ_ONLY, DENIED = (disk(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES))


def out(workspace: Workspace, name: str) -> Path:
    return workspace.folder / "out" / name


def weights_to_a_full_disk(workspace: Workspace) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    workspace.patch.setattr(safetensors.torch, "save_file", full)
    write_tensors(out(workspace, "model.safetensors"), {"weight": torch.zeros(1)})


def new_folder_in_out(workspace: Workspace) -> None:
    with new_folder(out(workspace, "hf")):
        pass


HITS = {("trained", "test"): FirstHits(np.zeros(2, np.int64), np.zeros(2, np.uint8))}

DISKS = [
    BadInput(
        f"{what} on a disk that {why}",
        f"a disk that {why}",
        act,
        (f"cannot be written ({os.strerror(number)})", fix, name),
        prepare,
    )
    for why, number, fix, prepare, things in (
        (
            "is full",
            errno.ENOSPC,
            "free space on this disk",
            FULL,
            (
                ("a row of metrics", lambda w: JsonLines(out(w, "metrics.jsonl")).append({"step": 1}), "metrics.jsonl"),
                ("a recording", lambda w: write_recording(out(w, "step_000001.arrow"), []), "step_000001.arrow"),
                ("a run's results", lambda w: Results(methods=[]).save(out(w, "results.json")), "results.json"),
                ("the ranks of hits", lambda w: save_hits(out(w, "hits.npz"), HITS), "hits.npz"),
                ("a folder of recordings", lambda w: make_folder(out(w, "rollouts")), "rollouts"),
                ("an exported folder", new_folder_in_out, "hf"),
                ("weights", weights_to_a_full_disk, "model.safetensors"),
            ),
        ),
        (
            "has no quota left",
            errno.EDQUOT,
            "free space within your quota",
            QUOTA,
            (("a row of metrics", lambda w: JsonLines(out(w, "ledger.jsonl")).append({"step": 1}), "ledger.jsonl"),),
        ),
        (
            "is read-only",
            errno.EROFS,
            "the file system is read-only, or choose another",
            READ_ONLY,
            (
                ("a report", "report runs/mine --out out/page.html", "out/page.html"),
                ("an estimate", "estimate run.toml --json out/estimate.json", "out/estimate.json"),
            ),
        ),
        (
            "refuses this user",
            errno.EACCES,
            "check the permissions, or choose another",
            DENIED,
            (("a manifest", "manifest run.toml --out out/job.yaml", "out/job.yaml"),),
        ),
    )
    for what, act, name in things
]


def full_cache(workspace: Workspace) -> None:
    def download(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/blobs/x")

    workspace.write_config()
    workspace.patch.setattr("saga_dist.config.loading.load_config", download)


CACHE = BadInput(
    "a library's cache on a disk that is full",
    "a disk that is full",
    "train run.toml",
    ("/cache/blobs/x: cannot be written (No space left on device); free space on this disk",),
    full_cache,
)

# ---------------------------------------------------------------------- paths


def file_named_out(workspace: Workspace) -> None:
    stand_in_inputs(workspace)
    (workspace.folder / "out").write_text("mine")


PATHS = [
    BadInput(what, "a path that cannot be", command, says, file_named_out)
    for what, command, says in (
        (
            "a run directory of train that is a file",
            "train run.toml --run-dir out",
            ("out: cannot be written", "is a file"),
        ),
        (
            "a run directory below a file",
            "rollout run.toml --run-dir out/run",
            (
                "out/run: cannot be written (Not a directory)",
                "a part of its path is a file, or choose another --run-dir",
            ),
        ),
        (
            "a table's directory below a file",
            "sweep table.toml --out out/t",
            ("out/t/", "cannot be written", "is a file", "choose another --out"),
        ),
        ("an embedding file below a file", "embed encoder photos --out out/e.arrow", ("e.arrow", "is a file")),
        (
            "results with too long a name",
            f"evaluate runs/mine --json {LONG}.json",
            ("cannot be written (File name too long)", "take a shorter name, or choose another --json"),
        ),
        ("a page that is a folder", "report runs/mine --out photos", ("photos: cannot be written", "name a file")),
        (
            "figures in a folder that is not there",
            "evidence show runs/mine --json gone/evidence.json",
            ("gone/evidence.json: cannot be written", "its folder does not exist, or choose another --json"),
        ),
        ("an index in place of a file", "index e.arrow --out out", ("there is something already", "another --out")),
    )
]

# ---------------------------------------------------------------------- inputs that cannot be read


def unreadable(name: str) -> Callable[[Workspace], None]:
    """Writes a stand-in for the file ``name``, which then cannot be opened."""

    def prepare(workspace: Workspace) -> None:
        file, real = workspace.folder / name, io.open
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"{}")

        def denied(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path).name == file.name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return real(path, *arguments, **options)

        workspace.patch.setattr(io, "open", denied)

    return prepare


UNREADABLE = [
    BadInput(f"{what} that cannot be read", "an unreadable input", act, (name, "(Permission denied)"), unreadable(name))
    for what, act, name in (
        ("a configuration", "train run.toml --dry-run", "run.toml"),
        ("a table", "sweep table.toml --show", "table.toml"),
        ("a run's configuration", "evaluate run", "run/config.json"),
        ("a file of metrics", lambda w: JsonLines(w.folder / "metrics.jsonl").rows(), "metrics.jsonl"),
        ("a weight file", lambda w: sha256_of_input(w.folder / "model.safetensors"), "model.safetensors"),
        ("a file of results", lambda w: Results.load(w.folder / "results.json"), "results.json"),
    )
]

# ---------------------------------------------------------------------- devices and contents

DEVICES = [
    BadInput(
        "a GPU for a build of torch without one",
        "a device that is not there",
        lambda workspace: checked_device("cuda"),
        ("device = 'cuda' cannot be used (Torch not compiled with CUDA enabled)",),
        lambda workspace: workspace.patch.setattr(torch, "empty", no_cuda),
    ),
    BadInput(
        "a device of no kind",
        "a device that is not there",
        "embed encoder photos --out e.arrow --device gpu",
        ("device = 'gpu' cannot be used", "expected cpu, cuda or cuda:N"),
        stand_in_inputs,
    ),
]


def no_cuda(*arguments: Any, **options: Any) -> torch.Tensor:
    raise AssertionError("Torch not compiled with CUDA enabled")


def resumed_with(name: str) -> Callable[[Workspace], None]:
    extra = {"split_hash": IDENTITY.split, "identity": IDENTITY.to_json()}
    return lambda workspace: refuse_other_identity(
        replace(IDENTITY, **{name: "0" * 64}), extra, where=workspace.folder / "step_00000007"
    )


CONTENTS = [
    *(
        BadInput(
            f"{what} since the checkpoint",
            "other content under the same name",
            resumed_with(name),
            ("step_00000007", words, "choose a new --run-dir"),
        )
        for what, name, words in (
            ("an MLLM that was replaced", "backbone", "the frozen MLLM's weights have changed"),
            ("a tower that was replaced", "tower", "the vision tower's initial weights have changed"),
            ("images that were replaced", "split", "the data set has changed"),
        )
    ),
    BadInput(
        "an MLLM that was replaced since the recording",
        "other content under the same name",
        lambda workspace: refuse_other_recording(
            IDENTITY, replace(IDENTITY, backbone="0" * 64), where=workspace.folder / "step_000007.arrow"
        ),
        ("step_000007.arrow: the frozen MLLM's weights have changed since this recording",),
    ),
    BadInput(
        "a file in a directory that another process took over",
        "a vanished place",
        lambda workspace: write_over_another(workspace),
        ("was removed, or another process took it over",),
    ),
]


def write_over_another(workspace: Workspace) -> None:
    with owned_directory(workspace.folder, option="--run-dir"):
        theirs = workspace.folder / "theirs"
        theirs.write_bytes(OTHER.content(1))
        theirs.replace(workspace.folder / OWNER_NAME)
        write_atomic(workspace.folder / "results.json", b"{}")


ROWS: list[BadInput] = [*OWNED, *TAKEN, *CACHED, *DISKS, CACHE, *PATHS, *UNREADABLE, *DEVICES, *CONTENTS]
