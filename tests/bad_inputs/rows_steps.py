"""Steps that do not wait: keys of early starts and of threads, damaged images in threads, ledgers of started pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs.row import BadInput, Workspace
from PIL import Image

from saga_dist.data.batch_reader import BatchReader
from saga_dist.data.image_sets import FolderImageSet
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.types import MicroBatch

DRY_RUN = "train run.toml --run-dir {folder}/run --dry-run"


def write(workspace: Workspace) -> None:
    """Writes the tiny run, which is valid."""
    workspace.write_config()


def override(name: str, kind: str, word: str, *says: str) -> BadInput:
    """Returns a row of a dry run with one override."""
    return BadInput(name, kind, f"{DRY_RUN} {word}", says, write)


# ---------------------------------------------------------------------- images read in threads


def read_in_threads(workspace: Workspace) -> object:
    """Reads a micro-batch of three files, of which ``b.jpg`` is bad, with threads that begin before it is asked for."""
    files = ("a.jpg", "b.jpg", "c.jpg")
    images = FolderImageSet(workspace.folder, files, (1, 1, 1), np.zeros(3, np.int64), ("one",), 8)
    batch = MicroBatch(0, 0, (0, 1, 2), (0, 0, 0), 0, ())
    reader = BatchReader(lambda index, seed: images.image(index), lambda batch: batch.image_ids, num_threads=2)
    reader.expect(batch)
    return reader.take(batch, again=False)


def beside(make: Callable[[Path], object]) -> Callable[[Workspace], None]:
    """Returns a preparation: two images, and ``b.jpg`` as ``make`` makes it."""

    def prepare(workspace: Workspace) -> None:
        for name in ("a.jpg", "c.jpg"):
            Image.new("RGB", (9, 9)).save(workspace.folder / name)
        make(workspace.folder / "b.jpg")

    return prepare


def cut(path: Path) -> None:
    """Writes the first half of a JPEG."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bitmap(side: int) -> Callable[[Path], object]:
    """Returns a writer of the header of a grey image whose sides have so many pixels."""
    return lambda path: path.write_bytes(b"P5 %d %d 255\n" % (side, side))


def damaged(name: str, make: Callable[[Path], object], *says: str) -> BadInput:
    """Returns a row of a micro-batch with one bad file."""
    return BadInput(f"{name} in a micro-batch that threads read", "images read in threads", read_in_threads,
                    ("b.jpg: ", *says), beside(make))  # fmt: skip


# ---------------------------------------------------------------------- the ledger

SAMPLER = ClassBalancedSampler([0, 0, 1, 1, 2, 2, 3, 3], 8, 2, seed=1)


def pairs(index: int, step: int = 0) -> list[str]:
    """Returns the ids of the four pairs of a micro-batch."""
    return [pair.pair_id for pair in SAMPLER.micro_batch(step, index, 4).pairs]


def audit(workspace: Workspace) -> object:
    return PairLedger(workspace.folder / "ledger.jsonl").audit(SAMPLER, 1, 4)


def ledger(name: str, change: Callable[[dict[str, Any]], object], *says: str) -> BadInput:
    """Returns a row of a ledger of one step, whose second micro-batch was cancelled, after a change."""

    def prepare(workspace: Workspace) -> None:
        row: dict[str, Any] = {"step": 1, "micro_batches": 1, "trained": pairs(0), "surplus": [], "zero_variance": []}
        row |= {"quarantined": {}, "cancelled": pairs(1)}
        change(row)
        (workspace.folder / "ledger.jsonl").write_text(json.dumps(row) + "\n")

    return BadInput(name, "pairs that were started", audit, ("ledger.jsonl, step 1", *says), prepare)


THREADS, SWITCH, KEYS, BUDGET = "number of threads", "switch of early starts", "key of a step", "budget of tokens"
FIRST = "expected the 4 pairs of its micro-batches, each once"
CANCELLED = "pairs of its cancelled micro-batches, each once"

ROWS = [
    override("fewer than no threads", THREADS, "data.decode_threads=-1", "data.decode_threads = -1", "equal to 0"),
    override("more threads than files can use", THREADS, "data.decode_threads=65", "data.decode_threads = 65", "64"),
    override("half a thread", THREADS, "data.decode_threads=0.5", "data.decode_threads = 0.5", "integer"),
    override("threads in words", THREADS, "data.decode_threads=two", "data.decode_threads = 'two'", "integer"),
    override("threads as a switch", THREADS, "data.decode_threads=true", "data.decode_threads = True", "integer"),
    override("a list of threads", THREADS, "data.decode_threads=[2]", "data.decode_threads", "integer"),
    override("early starts as a number", SWITCH, "rollout.early_start=1", "rollout.early_start = 1", "boolean"),
    override(
        "early starts in other words", SWITCH, "rollout.early_start=yes", "rollout.early_start = 'yes'", "boolean"
    ),
    override("early starts as a share", SWITCH, "rollout.early_start=0.5", "rollout.early_start = 0.5", "boolean"),
    override("a list of early starts", SWITCH, "rollout.early_start=[true]", "rollout.early_start", "boolean"),
    override("early starts in the plural", KEYS, "rollout.early_starts=true", "did you mean rollout.early_start?"),
    override("one thread by another name", KEYS, "data.decode_thread=1", "did you mean data.decode_threads?"),
    override("decoding by another name", KEYS, "data.decoding_threads=1", "did you mean data.decode_threads?"),
    override("early starts among the data", KEYS, "data.early_start=true", "unknown key data.early_start"),
    override("threads among the rollouts", KEYS, "rollout.decode_threads=1", "unknown key rollout.decode_threads"),
    override("no memory for started rollouts", BUDGET, "rollout.ahead_budget_mb=0", "rollout.ahead_budget_mb = 0", "1"),
    override("memory with its unit", BUDGET, "rollout.ahead_budget_mb=4GB", "rollout.ahead_budget_mb = '4GB'"),
    override("a share of memory", BUDGET, "rollout.ahead_budget_mb=0.5", "rollout.ahead_budget_mb = 0.5", "integer"),
    damaged("a missing file", lambda path: None, "cannot read the image", "check that the file exists"),
    damaged("an empty file", lambda path: path.touch(), "not an image"),
    damaged("half of a JPEG", cut, "damaged image", "replace or remove the file"),
    damaged("a text", lambda path: path.write_text("not found"), "not an image"),
    damaged("a folder", Path.mkdir, "not a regular file"),
    damaged("a pipe", os.mkfifo, "not a regular file"),
    damaged("an image of 81 megapixels", bitmap(9_000), "9000 x 9000 pixels", "at most 64 megapixels"),
    damaged("an image that Pillow warns of", bitmap(10_000), "at most 64 megapixels", "scale the image down"),
    ledger("a pair that was lost", lambda row: row["trained"].pop(), "3 pairs", FIRST),
    ledger("a pair that trained twice", lambda row: row["surplus"].append(pairs(0)[0]), "5 pairs", FIRST),
    ledger("a cancelled pair that trained", lambda row: row["trained"].append(pairs(1)[0]), "5 pairs", FIRST),
    ledger("a used pair among the cancelled", lambda row: row["cancelled"].append(pairs(0)[0]), "5 pairs", CANCELLED),
    ledger("a cancelled pair that is missing", lambda row: row["cancelled"].pop(), "3 pairs", CANCELLED),
    ledger("a cancelled pair twice", lambda row: row["cancelled"].append(pairs(1)[0]), "5 pairs", CANCELLED),
    ledger("cancelled pairs with a gap", lambda row: row.update(cancelled=pairs(2)), "4 pairs", CANCELLED),
    ledger("cancelled pairs of another step", lambda row: row.update(cancelled=pairs(1, step=1)), "4 pairs", CANCELLED),
]
