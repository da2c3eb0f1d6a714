"""Indexes: the neighbours that plain numpy finds, honest recall, and refusal of what does not belong together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saga_dist.errors import CheckpointError, DataError, ModelError, OutputError
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.retrieval.index import KINDS, Kind, build_index, open_index
from saga_dist.retrieval.tables import EmbeddingTable, Source, write_embeddings
from saga_dist.utils.atomic_io import file_sha256

MODEL = ModelIdentity("a" * 64, "qwen3_vl", 80, {}, "/models/a")
OTHER = ModelIdentity("b" * 64, "qwen3_vl", 80, {}, "/models/b")


def clustered(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors around 40 centres, as embeddings of classes are."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(40, width))
    vectors = centres[generator.integers(0, 40, count)] + 0.5 * generator.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def table_of(vectors_IE: np.ndarray) -> EmbeddingTable:
    zeros = np.zeros(len(vectors_IE), np.int64)
    return EmbeddingTable(
        Source(MODEL, "/images"), tuple(f"{row}.png" for row in range(len(vectors_IE))), zeros, zeros, vectors_IE
    )


def nearest(query_E: np.ndarray, vectors_IE: np.ndarray, k: int) -> list[str]:
    cosines_I = vectors_IE.astype(np.float64) @ query_E.astype(np.float64)
    return [f"{row}.png" for row in np.argsort(-cosines_I)[:k]]


def test_the_exact_index_finds_what_numpy_finds(tmp_path: Path) -> None:
    vectors_IE, queries_QE = clustered(500), clustered(20, seed=1)
    built = build_index(table_of(vectors_IE), tmp_path / "index")
    assert (built.num_images, built.width, built.recall, built.num_queries) == (500, 16, 1.0, 0)
    index = open_index(tmp_path / "index")
    assert len(index) == 500
    assert index.root == Path("/images")
    for query_E, found in zip(queries_QE, index.search(3 * queries_QE, 7), strict=True):  # length does not matter
        assert [identifier for identifier, _ in found] == nearest(query_E, vectors_IE, 7)
        best = float(vectors_IE[int(found[0][0][:-4])] @ query_E)
        assert found[0][1] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_recall_of_an_approximate_index_is_what_counting_gives(tmp_path: Path, kind: Kind) -> None:
    vectors_IE = clustered(4000)
    built = build_index(table_of(vectors_IE), tmp_path / "index", kind=kind, seed=3)
    index = open_index(tmp_path / "index")
    rows = np.random.default_rng(3).permutation(4000)[:1000]
    hits = 0
    for row, found in zip(rows, index.search(vectors_IE[rows], 11), strict=True):
        own = f"{row}.png"
        others = [identifier for identifier, _ in found if identifier != own][:10]
        exact = [identifier for identifier in nearest(vectors_IE[row], vectors_IE, 11) if identifier != own][:10]
        hits += len(set(others) & set(exact))
    assert built.num_queries == 1000
    assert built.recall == pytest.approx(hits / 10_000, abs=2e-3)
    assert 0.85 < built.recall <= 1
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["recall_at_10"] == built.recall


@pytest.mark.parametrize("kind", KINDS)
def test_progress_is_told_after_every_batch(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saga_dist.retrieval.index._BATCH", 200)
    told: list[tuple[int, int]] = []
    vectors_IE = clustered(500)
    build_index(table_of(vectors_IE), tmp_path / "i", kind=kind, on_progress=lambda *counts: told.append(counts))
    assert told == [(200, 500), (400, 500), (500, 500)]
    (found,) = open_index(tmp_path / "i").search(vectors_IE[450:451], 1)
    assert found[0][0] == "450.png"


def test_a_large_graph_is_built_with_less_care_and_searched_with_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parameters(name: str) -> dict[str, int]:
        build_index(table_of(clustered(500)), tmp_path / name, kind="hnsw")
        return json.loads((tmp_path / name / "manifest.json").read_text())["parameters"]

    assert parameters("small") == {"links": 32, "ef_construction": 80, "ef_search": 128}
    monkeypatch.setattr("saga_dist.retrieval.index._HNSW_LARGE", 500)
    assert parameters("large") == {"links": 16, "ef_construction": 40, "ef_search": 256}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_vectors_by_the_command(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((10_000, 64), np.float32)
    vectors_IE = centres[generator.integers(0, 10_000, 1_000_000)]
    vectors_IE += 0.7 * generator.standard_normal(vectors_IE.shape, np.float32)
    vectors_IE /= np.linalg.norm(vectors_IE, axis=1, keepdims=True)
    write_embeddings(tmp_path / "million.arrow", table_of(vectors_IE))
    recalls = {}
    for kind in KINDS:
        arguments = ["index", str(tmp_path / "million.arrow"), "--out", str(tmp_path / kind), "--kind", kind]
        program = f"import sys\nfrom saga_dist.cli.main import main\nsys.argv = ['saga-dist', *{arguments!r}]\nmain()\n"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=3000, check=False
        )
        assert f"{kind} index of 1,000,000 images, 64 wide" in done.stdout, done.stderr[-2000:]
        assert ("recall@10 against exact" in done.stdout) == (kind != "flat")
        recalls[kind] = json.loads((tmp_path / kind / "manifest.json").read_text())["recall_at_10"]
        assert len(open_index(tmp_path / kind)) == 1_000_000
    assert recalls["flat"] == 1
    assert min(recalls.values()) > 0.9


def test_recall_falls_when_the_index_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = build_index(table_of(clustered(4000)), tmp_path / "good", kind="hnsw")
    monkeypatch.setattr("saga_dist.retrieval.index._HNSW_SEARCH", 1)
    monkeypatch.setattr("saga_dist.retrieval.index._HNSW_BUILD", 1)
    bad = build_index(table_of(clustered(4000)), tmp_path / "bad", kind="hnsw")
    assert bad.recall < good.recall - 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_small_collections_are_found_whole(tmp_path: Path, kind: Kind, count: int) -> None:
    vectors_IE = clustered(count)
    assert build_index(table_of(vectors_IE), tmp_path / "index", kind=kind).recall == 1
    (found,) = open_index(tmp_path / "index").search(vectors_IE[:1], 99)
    assert [identifier for identifier, _ in found] == nearest(vectors_IE[0], vectors_IE, count)


def test_duplicates_count_as_found(tmp_path: Path) -> None:
    vectors_IE = np.repeat(clustered(100), 30, axis=0)
    assert build_index(table_of(vectors_IE), tmp_path / "index", kind="ivf").recall == 1


def test_another_model_is_refused(tmp_path: Path) -> None:
    build_index(table_of(clustered(5)), tmp_path / "index")
    model = open_index(tmp_path / "index").model
    model.refuse_other(MODEL, where="index")
    with pytest.raises(ModelError, match=r"index: made with model aaaaaaaaaaaa, not with bbbbbbbbbbbb"):
        model.refuse_other(OTHER, where="index")


def test_damage_and_other_versions_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build_index(table_of(clustered(5)), folder)
    content = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"index.faiss: is missing or was altered"):
        open_index(folder)
    (folder / "index.faiss").write_bytes(content)
    open_index(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for changes, message in (
        ({"format_version": 2}, r"format version 2, metric 'cosine'; expected 1, cosine"),
        ({"metric": "l2"}, r"metric 'l2'"),
        ({"num_images": 6}, r"5 vectors, 5 ids, width 16; expected 6, 6, 16"),
        ({"model": {"sha256": "a"}}, r"does not say which model"),
        ({"sha256": {}}, r"cannot be read"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(CheckpointError, match=message):
            open_index(folder)
    with pytest.raises(CheckpointError, match=r"saga-dist index"):
        open_index(tmp_path / "nowhere")


def test_mistakes_are_named_and_leave_nothing(tmp_path: Path) -> None:
    table = table_of(clustered(5))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(OutputError, match=r"used: there is something already"):
        build_index(table, tmp_path / "used")
    with pytest.raises(DataError, match=r"kind 'tree'; expected flat, hnsw, ivf"):
        build_index(table, tmp_path / "index", kind="tree")  # type: ignore[arg-type]
    broken = clustered(5)
    broken[2] = np.nan
    with pytest.raises(DataError, match=r"first at row 2"):
        build_index(table_of(broken), tmp_path / "index")
    build_index(table, tmp_path / "index")
    index = open_index(tmp_path / "index")
    for queries_QE, k in ((clustered(1), 0), (clustered(1, width=8), 5)):
        with pytest.raises(DataError, match=r"expected k >= 1, 16 wide"):
            index.search(queries_QE, k)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "used"]


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.parquet", table_of(clustered(300)))
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'ray', 'vllm'): sys.modules[name] = None\n"
        "from saga_dist.cli.main import main\n"
        f"sys.argv = ['saga-dist', 'index', {str(tmp_path / 'e.parquet')!r}, '--out', {str(tmp_path / 'i')!r}, "
        "'--kind', 'ivf']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert "ivf index of 300 images, 16 wide" in done.stdout, done.stderr[-2000:]
    assert "recall@10 against exact" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_k_finds_every_image_in_the_order_of_numpy(tmp_path: Path, kind: Kind) -> None:
    vectors_IE, queries_QE = clustered(1500), clustered(3, seed=1)
    build_index(table_of(vectors_IE), tmp_path / "index", kind=kind)
    index = open_index(tmp_path / "index")
    for k in (1200, 1500, 9000):
        for query_E, found in zip(queries_QE, index.search(queries_QE, k), strict=True):
            assert len(found) == min(k, 1500)
            if kind != "hnsw" or k >= 1500:  # a graph that finds k images need not find the k nearest
                expected = vectors_IE @ query_E
                assert [score for _, score in found] == pytest.approx(np.sort(expected)[::-1][:k], abs=1e-6)


def test_a_large_k_changes_no_later_search(tmp_path: Path) -> None:
    build_index(table_of(clustered(1500)), tmp_path / "index", kind="ivf")
    index, queries_QE = open_index(tmp_path / "index"), clustered(20, seed=1)
    before = index.search(queries_QE, 30)
    index.search(queries_QE, 1500)
    assert index.search(queries_QE, 30) == before


def test_search_works_beside_libraries_that_make_faiss_take_tensors(tmp_path: Path) -> None:
    """pytorch-metric-learning imports faiss.contrib.torch_utils, which replaces the methods of faiss's indexes."""
    build_index(table_of(clustered(300)), tmp_path / "index", kind="ivf")
    program = (
        "import sys, pathlib, numpy as np, faiss.contrib.torch_utils\n"
        "from saga_dist.retrieval.index import open_index\n"
        "found = open_index(pathlib.Path(sys.argv[1])).search(np.eye(16, dtype=np.float32)[:2], 300)\n"
        "print([len(images) for images in found])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "index")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.stdout == "[300, 300]\n", done.stderr[-2000:]


def test_parts_of_a_graph_that_no_search_reaches_are_searched_too(tmp_path: Path) -> None:
    import faiss

    vectors_IE = clustered(400)
    build_index(table_of(vectors_IE), tmp_path / "index", kind="hnsw")
    graph = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    links[:] = -1
    faiss.copy_array_to_vector(links, graph.hnsw.neighbors)
    faiss.write_index(graph, str(tmp_path / "index" / "index.faiss"))
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    manifest["sha256"]["index.faiss"] = file_sha256(tmp_path / "index" / "index.faiss")
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(manifest))
    (found,) = open_index(tmp_path / "index").search(vectors_IE[:1], 7)
    assert [identifier for identifier, _ in found] == nearest(vectors_IE[0], vectors_IE, 7)
