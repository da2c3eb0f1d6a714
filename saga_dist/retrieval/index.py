"""A faiss index of embeddings: exact, HNSW or IVF; the recall of HNSW and IVF is measured against exact search.

The folder holds:

manifest.json   model, preprocessing, metric, kind, recall, and sha256 of the other two files; written last
index.faiss     index in the format of faiss
ids.arrow       path of each row of the index
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saga_dist.errors import CheckpointError, DataError
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.retrieval.normalized import normalized_rows
from saga_dist.retrieval.tables import METRIC, EmbeddingTable, read_ids, write_ids
from saga_dist.utils.atomic_io import file_sha256, new_folder, sha256_of_input, write_atomic
from saga_dist.utils.directory_owner import owned_output
from saga_dist.utils.output_errors import os_error_of, output_errors

Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf")
FORMAT_VERSION = 1
MANIFEST_NAME, INDEX_NAME, IDS_NAME = "manifest.json", "index.faiss", "ids.arrow"
RECALL_AT = 10
"""Number of neighbours of the recall measurement."""
_RECALL_QUERIES = 1000
"""Largest number of queries of the recall measurement."""
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 80, 128
"""faiss's M, efConstruction and efSearch of a graph below ``_HNSW_LARGE`` vectors."""
_HNSW_LARGE = 200_000
"""Number of vectors from which M and efConstruction are halved, which builds the graph in a third of the time, and
efSearch is doubled: a million vectors of 128 numbers take minutes, at a recall of 0.94 (ivf: 0.999)."""
_BATCH = 10_000
"""Vectors added at a time; progress is reported after each batch."""
_IVF_POINTS_PER_LIST = 39
"""Smallest number of vectors with which faiss recommends to train one list."""
_IVF_POINTS_TO_TRAIN = 64
"""Randomly chosen vectors per list to train with; with all of a million, the training would dominate the time."""
_TIE = 1e-6
"""Largest difference of float32 cosines that counts as equal, because either of two duplicates is a right answer."""


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """Result of ``build_index``."""

    num_images: int
    """Number of vectors in the index."""
    width: int
    """E, width of a vector."""
    build_s: float
    """Seconds to train the index and add the vectors."""
    num_bytes: int
    """Size of index.faiss in bytes."""
    recall: float
    """Recall@10 against exact search, 0 to 1; 1 for the exact index."""
    num_queries: int
    """Number of queries behind ``recall``; 0 for the exact index, which is not compared with itself."""
    search_us: float
    """Microseconds per query in one batch; 0 for the exact index."""
    exact_us: float
    """Microseconds per query of exact search in one batch; 0 for the exact index."""


def build_index(
    table: EmbeddingTable,
    out: Path,
    *,
    kind: Kind = "flat",
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuiltIndex:
    """Writes an index of the embeddings into a new folder.

    Args:
        table: embeddings and ids.
        out: folder to write, which must be absent or empty.
        kind: ``flat`` searches all vectors; ``hnsw`` searches a graph; ``ivf`` searches the nearest of many lists.
        seed: seed of the selection of queries for the recall measurement.
        on_progress: called after each batch with the number of vectors in the index and the number of all vectors.

    Raises:
        DataError: there is nothing to index, an embedding is zero or not finite, or the kind is unknown.
        OutputError: ``out`` is in use or cannot be written.
    """
    if kind not in KINDS:
        raise DataError(f"kind {kind!r}", expected=", ".join(KINDS))
    if not table.ids:
        raise DataError("no embeddings to index", where=table.source.root)
    import faiss

    vectors_IE = normalized_rows(table.values_IE)
    with owned_output(out, option="--out"), new_folder(out) as folder:
        started = time.monotonic()
        index, parameters = _make(faiss, vectors_IE, kind)
        for start in range(0, len(vectors_IE), _BATCH):
            index.add(vectors_IE[start : start + _BATCH])
            on_progress(index.ntotal, len(vectors_IE))
        build_s = time.monotonic() - started
        _write_index(faiss, index, folder / INDEX_NAME)
        write_ids(folder / IDS_NAME, table.ids)
        recall, num_queries, search_us, exact_us = _recall(faiss, index, vectors_IE, kind, seed)
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "parameters": parameters,
            "metric": METRIC,
            "num_images": len(table.ids),
            "embedding_dim": vectors_IE.shape[1],
            f"recall_at_{RECALL_AT}": recall,
            "model": table.source.model.to_json(),
            "root": table.source.root,
            "sha256": {name: file_sha256(folder / name) for name in (INDEX_NAME, IDS_NAME)},
            "faiss": importlib.metadata.version("faiss-cpu"),
        }
        write_atomic(folder / MANIFEST_NAME, (json.dumps(manifest, indent=2) + "\n").encode())
        num_bytes = (folder / INDEX_NAME).stat().st_size
    return BuiltIndex(len(table.ids), vectors_IE.shape[1], build_s, num_bytes, recall, num_queries, search_us, exact_us)


class Index:
    """An opened index that returns the nearest images of an embedding; its length is the number of images.

    Args:
        index: faiss index.
        ids: Arrow column of ids, one per row of the index.
        manifest: content of the index's manifest.json.
        model: identity of the encoder of the embeddings.
        root: folder of the images when they were embedded.
    """

    def __init__(self, index: Any, ids: Any, manifest: dict[str, Any], *, model: ModelIdentity, root: Path) -> None:
        self._index, self._ids = index, ids
        self.manifest = manifest
        """Content of the index's manifest.json."""
        self.model = model
        """Identity of the encoder of the embeddings."""
        self.root = root
        """Folder of the images when they were embedded."""

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, queries_QE: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """Returns (id, cosine) of the k nearest images of each query, best first.

        Queries for which the lists or the part of the graph that an approximate index visits hold fewer than k images
        are compared with all images.

        Args:
            queries_QE: floating [Q, E], embeddings by the index's own model.
            k: number of images, at least 1; one larger than the index stands for all its images.

        Raises:
            DataError: k is less than 1, or the queries do not fit the index.
        """
        queries = normalized_rows(queries_QE)
        if k < 1 or queries.shape[1] != self._index.d:
            raise DataError(
                f"k = {k}, queries {queries.shape}", where="search", expected=f"k >= 1, {self._index.d} wide"
            )
        count = min(k, len(self))
        scores_QK, rows_QK = self._index.search(queries, count)
        short = np.flatnonzero((rows_QK < 0).any(1))  # faiss fills the places of missing images with -1
        if len(short):
            scores_QK[short], rows_QK[short] = self._search_all(queries[short], count)
        return [
            [(self._ids[int(row)].as_py(), float(score)) for score, row in zip(scores, rows, strict=True)]
            for scores, rows in zip(scores_QK, rows_QK, strict=True)
        ]

    def _search_all(self, queries_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns cosines float32 [Q, k] and rows int64 [Q, k] of the nearest of all images, best first."""
        import faiss

        if not isinstance(self._index, faiss.IndexIVF):
            # A graph may have parts that no search reaches; its vectors are in a flat index below it.
            scores_QK, rows_QK = self._index.storage.search(queries_QE, k)
            return scores_QK, rows_QK
        # Not as search parameters: with faiss.contrib.torch_utils, which other libraries import, search takes none.
        usual, self._index.nprobe = self._index.nprobe, self._index.nlist
        try:
            scores_QK, rows_QK = self._index.search(queries_QE, k)
        finally:
            self._index.nprobe = usual
        return scores_QK, rows_QK


def open_index(folder: Path) -> Index:
    """Returns the index in a folder after checking its files against its manifest.

    Raises:
        CheckpointError: a file is missing or altered, or the format has another version.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version, digests = manifest["format_version"], manifest["sha256"]
        digests = {name: digests[name] for name in (INDEX_NAME, IDS_NAME)}
        root, metric = Path(manifest["root"]), manifest["metric"]
        count, width = int(manifest["num_images"]), int(manifest["embedding_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise CheckpointError(
            f"cannot be read ({reason})", where=str(path), expected="a folder that `saga-dist index` wrote"
        ) from error
    if version != FORMAT_VERSION or metric != METRIC:
        raise CheckpointError(
            f"format version {version!r}, metric {metric!r}",
            where=str(path),
            expected=f"{FORMAT_VERSION}, {METRIC}",
            fix="build the index again with this version",
        )
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file() or sha256_of_input(file) != digest:
            raise CheckpointError(
                "is missing or was altered", where=str(file), expected=str(digest)[:12], fix="build the index again"
            )
    import faiss

    index, ids = faiss.read_index(str(folder / INDEX_NAME)), read_ids(folder / IDS_NAME)
    if not index.ntotal == len(ids) == count or index.d != width:
        raise CheckpointError(
            f"{index.ntotal} vectors, {len(ids)} ids, width {index.d}",
            where=str(folder),
            expected=f"{count}, {count}, {width} as in {MANIFEST_NAME}",
            fix="build the index again",
        )
    return Index(index, ids, manifest, model=ModelIdentity.from_json(manifest.get("model"), where=str(path)), root=root)


def _make(faiss: Any, vectors_IE: np.ndarray, kind: Kind) -> tuple[Any, dict[str, int]]:
    """Returns a trained index without vectors, and its parameters.

    The index searches by inner product, which is the cosine because the vectors have length 1.

    Args:
        faiss: the imported module.
        vectors_IE: float32 [I, E], rows of length 1.
        kind: kind of the index.
    """
    count, width = vectors_IE.shape
    if kind == "hnsw":
        links, build, search = _HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH
        if count >= _HNSW_LARGE:
            links, build, search = links // 2, build // 2, 2 * search
        index = faiss.IndexHNSWFlat(width, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = build, search
        parameters = {"links": links, "ef_construction": build, "ef_search": search}
    elif kind == "ivf":
        lists = max(1, min(round(4 * math.sqrt(count)), count // _IVF_POINTS_PER_LIST))
        quantizer = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(quantizer, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = _IVF_POINTS_TO_TRAIN
        # A sixteenth of the lists is a compromise between recall and time; up to 8 lists are all searched.
        index.nprobe = min(lists, max(8, lists // 16))
        index.train(vectors_IE)
        parameters = {"lists": lists, "probed_lists": index.nprobe}
    else:
        index, parameters = faiss.IndexFlatIP(width), {}
    return index, parameters


def _write_index(faiss: Any, index: Any, path: Path) -> None:
    """Writes an index to a file.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_errors(path):
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:  # raised by faiss when the disk is full
            raise os_error_of(error) from error


def _recall(faiss: Any, index: Any, vectors_IE: np.ndarray, kind: Kind, seed: int) -> tuple[float, int, float, float]:
    """Returns the index's Recall@10 for some of its own images, the number of these, and microseconds per query.

    No image counts as its own neighbour. The two times are those of the index and of exact search. For the exact index
    the result is (1, 0, 0, 0).
    """
    neighbours = min(RECALL_AT, len(vectors_IE) - 1)
    if kind == "flat" or neighbours == 0:
        return 1.0, 0, 0.0, 0.0
    rows = np.random.default_rng(seed).permutation(len(vectors_IE))[:_RECALL_QUERIES]
    queries_QE = vectors_IE[rows]
    started = time.monotonic()
    exact_QK, exact_rows_QK = faiss.knn(queries_QE, vectors_IE, neighbours + 1, metric=faiss.METRIC_INNER_PRODUCT)
    middle = time.monotonic()
    found_QK, found_rows_QK = index.search(queries_QE, neighbours + 1)
    ended = time.monotonic()
    # The worst score among the exact neighbours; every image with at least this score counts as found.
    border_Q = _without(exact_QK, exact_rows_QK, rows).min(1)
    others_QK = _without(found_QK, found_rows_QK, rows)
    share = float((others_QK >= border_Q[:, None] - _TIE).mean())
    return share, len(rows), (ended - middle) / len(rows) * 1e6, (middle - started) / len(rows) * 1e6


def _without(scores_QK: np.ndarray, rows_QK: np.ndarray, own_Q: np.ndarray) -> np.ndarray:
    """Returns scores [Q, K - 1], best first, without the query's own score or, when that is missing, the last one."""
    own_QK = rows_QK == own_Q[:, None]
    own_QK[~own_QK.any(1), -1] = True
    return scores_QK[~own_QK].reshape(len(scores_QK), -1)
