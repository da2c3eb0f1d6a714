from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saga_dist.errors import DataError
from saga_dist.protocols import Embeddings
from saga_dist.retrieval.first_hits import FirstHits, load_hits, save_hits
from saga_dist.training.evaluation import retrieval_result


def _hits(labels: list[int], first: list[int]) -> FirstHits:
    return FirstHits(np.array(labels, np.int64), np.array(first, np.uint8))


def test_what_is_saved_is_loaded_per_method_and_split(tmp_path: Path) -> None:
    path = tmp_path / "hits.npz"
    one, two, val = _hits([0, 0, 5], [1, 0, 8]), _hits([0, 0, 5], [2, 2, 0]), _hits([3, 3], [1, 1])
    save_hits(path, {("pre-trained", "test"): one, ("trained", "test"): two, ("trained", "val"): val})
    back = load_hits(path, "trained", "test")
    assert back.labels_Q.tolist() == [0, 0, 5]
    assert back.first_hit_Q.tolist() == [2, 2, 0]
    assert load_hits(path, "pre-trained", "test").at(1).tolist() == [True, False, False]
    assert load_hits(path, "pre-trained", "test").at(8).tolist() == [True, False, True]
    assert load_hits(path, "trained", "val").first_hit_Q.tolist() == [1, 1]
    with pytest.raises(DataError, match="has no method 'pre-trained' on split 'val'"):
        load_hits(path, "pre-trained", "val")


def test_hits_are_what_the_figures_are_made_of() -> None:
    generator = np.random.default_rng(0)
    embeddings = Embeddings(generator.normal(size=(90, 4)).astype(np.float32), np.repeat(np.arange(9), 10))
    kept: list[FirstHits] = []
    result = retrieval_result(embeddings, seed=0, resamples=100, precision=True, on_hits=kept.append)
    (hits,) = kept
    for k, recall in (
        (1, result.recall_at_1),
        (2, result.recall_at_2),
        (4, result.recall_at_4),
        (8, result.recall_at_8),
    ):
        assert hits.at(k).mean() == recall
    assert result.map_at_r is not None and result.r_precision is not None
    assert 0 < result.map_at_r < result.r_precision < 1
    assert retrieval_result(embeddings, seed=0, resamples=100).map_at_r is None


def test_other_queries_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hits.npz"
    with pytest.raises(DataError, match="'b' was evaluated on other queries"):
        save_hits(path, {("a", "test"): _hits([0, 1], [1, 1]), ("b", "test"): _hits([1, 0], [1, 1])})
    for content in (b"", b"PK\x03\x04 half a file", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read") as caught:
            load_hits(path, "a", "test")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        load_hits(tmp_path / "none.npz", "a", "test")
    with pytest.raises(DataError, match="ranks up to 9"):
        _hits([0], [9])
    with pytest.raises(DataError, match="one of each per query"):
        _hits([0, 1], [1])
