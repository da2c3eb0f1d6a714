"""Embeds a folder of images into a file: resumable, with bounded memory; unusable images are left out and listed.

While it runs, finished rows are stored in ``OUT.parts/``. After a crash the same command resumes from there; when the
file is complete, it embeds only new and changed images.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from saga_dist.data.formats import EXAMPLES
from saga_dist.data.images import read_image
from saga_dist.data.left_out import LeftOut, summary
from saga_dist.errors import DataError
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.retrieval.image_list import ImageFile, list_images
from saga_dist.retrieval.tables import EmbeddingTable, Source, check_suffix, read_embeddings, write_embeddings
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.directory_owner import owned_output
from saga_dist.utils.output_errors import output_errors
from saga_dist.utils.output_files import make_folder

log = logging.getLogger(__name__)

BATCH_SIZE = 64
"""Images per call of the encoder."""
BATCHES_PER_PART = 16
"""Batches per file of ``OUT.parts/``."""
_BATCHES_AHEAD = 2
"""Batches that are decoded while one is encoded."""


class ImageEncoder(Protocol):
    """An encoder of images, such as the one that ``saga_dist.load`` returns."""

    image_size: int
    """S, side of the square images in pixels."""

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns embeddings [I, E] float32, l2-normalised, of images uint8 [S, S, 3]."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Result of ``embed_folder``."""

    num_images: int
    """Number of rows of the file."""
    num_new: int
    """Number of rows embedded by this call; the others existed before."""
    bad: tuple[str, ...]
    """One line with the reason for each unusable image."""
    bad_list: Path
    """File with these lines; it exists only when there are any."""
    left_out: tuple[LeftOut, ...]
    """Files below the folder that were left out, those of ``bad`` that cannot even be opened included."""


def embed_folder(
    encoder: ImageEncoder,
    identity: ModelIdentity,
    root: Path,
    out: Path,
    *,
    max_bad_share: float = 0.05,
    jobs: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Writes the embeddings of all images below a folder; the same call resumes.

    Args:
        encoder: encoder that computes the embeddings.
        identity: identity of that encoder.
        root: folder of images, searched at every depth (``list_images``).
        out: file to write, .arrow or .parquet.
        max_bad_share: largest allowed share of unusable images, in [0, 1]. They are listed in ``OUT.bad.jsonl``.
        jobs: number of decoding threads; 0: one per core.
        on_progress: called with the number of images done and the number of all images.

    Raises:
        DataError: there is nothing to embed, too many images are unusable, an embedding is not finite, or ``out`` holds
            the images of another folder.
        ModelError: ``out`` exists and was made with another model.
        OutputError: ``out`` cannot be written, or another process is writing it.
    """
    check_suffix(out)
    with owned_output(out, option="--out"):
        return _embed(encoder, Source(identity, str(root.resolve())), root, out, max_bad_share, jobs, on_progress)


def _embed(
    encoder: ImageEncoder,
    source: Source,
    root: Path,
    out: Path,
    max_bad_share: float,
    jobs: int,
    on_progress: Callable[[int, int], None],
) -> Embedded:
    if not 0 <= max_bad_share <= 1:
        raise DataError(f"share of bad images {max_bad_share}", expected="a number from 0 to 1")
    listed = list_images(root)
    files, bad = listed.files, list(listed.bad)
    total = len(files) + len(bad)
    if not files:
        others = f" ({summary(listed.left_out)})" if listed.left_out else ""
        raise DataError(f"no images{others}", where=str(root), expected=EXAMPLES)
    parts = _EmbeddingParts(out, source)
    known = parts.known({file.id: file for file in files})
    missing = [file for file in files if file.id not in known]
    done = len(known)
    _refuse_too_many(out, root, bad, total, max_bad_share)
    on_progress(done, total)
    new = 0
    for chunk in _decoded(root, missing, encoder.image_size, jobs or os.cpu_count() or 1):
        good = [(file, image) for file, image in chunk if isinstance(image, np.ndarray)]
        bad += [(file.id, str(image)) for file, image in chunk if isinstance(image, DataError)]
        if len(bad) > max_bad_share * total:
            parts.flush()  # keeps the finished embeddings for the next call
        _refuse_too_many(out, root, bad, total, max_bad_share)
        if good:
            parts.add([file for file, _ in good], encoder.encode([image for _, image in good]))
        new += len(good)
        on_progress(done + new + len(bad), total)
    _list_bad(out, bad)
    parts.finish([file.id for file in files])
    return Embedded(done + new, new, tuple(reason for _, reason in bad), _bad_list(out), listed.left_out)


def _decoded(
    root: Path, files: Sequence[ImageFile], size: int, jobs: int
) -> Iterator[list[tuple[ImageFile, np.ndarray | DataError]]]:
    """Yields the files in batches with their images, uint8 [size, size, 3], or the errors of decoding them.

    Args:
        root: folder of the images.
        files: images to decode.
        size: side of the decoded squares in pixels.
        jobs: number of decoding threads, which work up to ``_BATCHES_AHEAD`` batches ahead.
    """

    def read(file: ImageFile) -> np.ndarray | DataError:
        try:
            return read_image(root / file.id, size)
        except DataError as error:
            return error

    waiting: deque[list[tuple[ImageFile, Future[np.ndarray | DataError]]]] = deque()
    with ThreadPoolExecutor(jobs, thread_name_prefix="decode") as pool:
        try:
            for start in range(0, len(files), BATCH_SIZE):
                waiting.append([(file, pool.submit(read, file)) for file in files[start : start + BATCH_SIZE]])
                if len(waiting) > _BATCHES_AHEAD:
                    yield [(file, image.result()) for file, image in waiting.popleft()]
            while waiting:
                yield [(file, image.result()) for file, image in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _EmbeddingParts:
    """Finished rows on the disk: those of an older ``out`` and of ``OUT.parts/``.

    Args:
        out: file to write in the end.
        source: encoder and folder of the embeddings.

    Raises:
        OutputError: the folder of parts cannot be read.
    """

    def __init__(self, out: Path, source: Source) -> None:
        self._out, self._source = out, source
        self._folder = out.with_name(out.name + ".parts")
        self._tables: list[EmbeddingTable] = []
        self._open: list[tuple[Sequence[ImageFile], np.ndarray]] = []
        with output_errors(out, option="--out"):
            self._numbers = {int(path.stem): path for path in self._folder.glob("*.arrow") if path.stem.isdigit()}

    def known(self, files: dict[str, ImageFile]) -> set[str]:
        """Returns the ids that need not be embedded again, because path, size, time, model and folder are the same.

        Args:
            files: present images by id.

        Raises:
            DataError: a file of rows cannot be read, or holds the images of another folder.
            ModelError: a file of rows was made with another model.
        """
        older = [self._out] if self._out.exists() else []
        known: set[str] = set()
        for path in [*older, *(path for _, path in sorted(self._numbers.items()))]:
            table = read_embeddings(path)
            table.source.model.refuse_other(self._source.model, where=str(path))
            if table.source.root != self._source.root:
                raise DataError(
                    f"holds the images of {table.source.root}",
                    where=str(path),
                    expected=self._source.root,
                    fix="choose another --out",
                )
            kept = [
                row
                for row, state in enumerate(zip(table.ids, table.sizes_bytes_I, table.mtimes_ns_I, strict=True))
                if state[0] in files and files[state[0]] == ImageFile(*state) and state[0] not in known
            ]
            known.update(table.ids[row] for row in kept)
            self._tables.append(_rows(table, kept))
        return known

    def add(self, files: Sequence[ImageFile], values_IE: np.ndarray) -> None:
        """Adds the embeddings of a batch, float32 [I, E]; writes a part every ``BATCHES_PER_PART`` batches.

        Raises:
            DataError: an embedding is not finite.
            OutputError: a part cannot be written.
        """
        if not np.isfinite(values_IE).all():
            raise DataError("an embedding is not finite", where=files[0].id, fix="check the model")
        self._open.append((files, values_IE))
        if len(self._open) == BATCHES_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are not on the disk yet as a new part."""
        if not self._open:
            return
        files = [file for batch, _ in self._open for file in batch]
        table = _table(self._source, files, np.concatenate([values_IE for _, values_IE in self._open]))
        number = max(self._numbers, default=-1) + 1
        make_folder(self._folder)
        self._numbers[number] = self._folder / f"{number:06d}.arrow"
        write_embeddings(self._numbers[number], table)
        self._tables.append(table)
        self._open = []

    def finish(self, order: Iterable[str]) -> None:
        """Writes ``out`` with its rows in the given order of ids, and removes the parts.

        Raises:
            DataError: there is no row.
            OutputError: ``out`` cannot be written.
        """
        self.flush()
        place = {identifier: (table, row) for table in self._tables for row, identifier in enumerate(table.ids)}
        chosen = [place[identifier] for identifier in order if identifier in place]
        if not chosen:
            raise DataError("no image could be used", where=self._source.root)
        files = [ImageFile(t.ids[row], int(t.sizes_bytes_I[row]), int(t.mtimes_ns_I[row])) for t, row in chosen]
        write_embeddings(self._out, _table(self._source, files, np.stack([t.values_IE[row] for t, row in chosen])))
        shutil.rmtree(self._folder, ignore_errors=True)


def _table(source: Source, files: Sequence[ImageFile], values_IE: np.ndarray) -> EmbeddingTable:
    return EmbeddingTable(
        source,
        tuple(file.id for file in files),
        np.array([file.size_bytes for file in files], np.int64),
        np.array([file.mtime_ns for file in files], np.int64),
        np.ascontiguousarray(values_IE, np.float32),
    )


def _rows(table: EmbeddingTable, rows: Sequence[int]) -> EmbeddingTable:
    return EmbeddingTable(
        table.source,
        tuple(table.ids[row] for row in rows),
        table.sizes_bytes_I[rows],
        table.mtimes_ns_I[rows],
        table.values_IE[rows],
    )


def _bad_list(out: Path) -> Path:
    return out.with_name(out.name + ".bad.jsonl")


def _list_bad(out: Path, bad: Sequence[tuple[str, str]]) -> None:
    """Writes the list of unusable images; removes it when there are none."""
    lines = "".join(json.dumps({"id": identifier, "reason": reason}) + "\n" for identifier, reason in bad)
    if lines:
        write_atomic(_bad_list(out), lines.encode())
    else:
        _bad_list(out).unlink(missing_ok=True)


def _refuse_too_many(out: Path, root: Path, bad: Sequence[tuple[str, str]], total: int, max_share: float) -> None:
    """Writes the list of unusable images and raises a DataError when their share exceeds ``max_share``."""
    if len(bad) > max_share * total:
        _list_bad(out, bad)
        raise DataError(
            f"{len(bad)} of {total} images cannot be used, first: {bad[0][1]}",
            where=str(root),
            expected=f"at most {max_share:.0%} of them",
            fix=f"see {_bad_list(out)}; mend or remove them, or raise --max-bad",
        )
