"""What version 0.1.0 wrote before the package was rearranged still loads: a run, its recording, every export."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saga_dist
from saga_dist.config import load_run_config
from saga_dist.runtime.run import open_run_directory
from saga_dist.wire import read_recording

WRITTEN = Path(__file__).resolve().parents[1] / "data" / "version_0_1_0"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: the run's configuration names its model relatively."""
    folder = Path(shutil.copytree(WRITTEN, tmp_path / "written"))
    packed = folder / "export" / "onnx" / "model.onnx.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.chdir(folder)
    return folder


def two_images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(2)]


def test_a_run_resumes_from_its_checkpoint_to_the_same_bits(written: Path, scene: Any) -> None:
    config = load_run_config(written / "run")
    open_run_directory(written / "run", config)
    scene.coordinator(config, written / "run").run()
    assert scene.weights_digest(written / "run", 3) == EXPECTED["weights_of_step_3"]
    counts = {"trained": 9, "surplus": 0, "zero_variance": 9, "quarantined": 0, "cancelled": 0}
    assert scene.audit(config, written / "run") == counts


def test_a_recording_trains_to_the_same_bits(written: Path, scene: Any, tmp_path: Path) -> None:
    groups = read_recording(written / "run" / "rollouts" / "step_000000.arrow")
    contributing = [group for group in groups if group.contributes]
    assert len(contributing) == 3
    # One of four completions says "yes": right on pairs of one class only.
    assert [group.rewards_G.sum() for group in contributing] == [
        1.0 if group.pair.same else 3.0 for group in contributing
    ]
    config = load_run_config(written / "run")
    again = config.model_copy(update={"rollout": config.rollout.model_copy(update={"recording": "run"})})
    scene.coordinator(again, tmp_path / "again").run()
    assert scene.weights_digest(tmp_path / "again", 3) == EXPECTED["weights_of_step_3"]


@pytest.mark.parametrize("folder", ["run/model", "export/hf", "export/sentence-transformers"])
def test_an_encoder_gives_the_same_embeddings(written: Path, folder: str) -> None:
    found = saga_dist.load(written / folder).encode(two_images())
    np.testing.assert_allclose(found, EXPECTED["embeddings_of_two_images"], atol=2e-6)


def test_sentence_transformers_finds_the_module_that_its_folder_names(written: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from PIL import Image

    from saga_dist.export.st_module import load_model

    folder = str(written / "export" / "sentence-transformers")
    with pytest.raises(ValueError, match="trust_remote_code"):  # from version 6 on; load_model needs no such trust
        library.SentenceTransformer(folder)
    for model in (load_model(folder), library.SentenceTransformer(folder, trust_remote_code=True)):
        found = model.encode([Image.fromarray(image) for image in two_images()])
        np.testing.assert_allclose(found, EXPECTED["embeddings_of_two_images"], atol=2e-6)


def test_onnx_gives_the_same_embeddings(written: Path) -> None:
    pytest.importorskip("onnxruntime")
    from saga_dist.export.onnx_encoder import OnnxEncoder

    found = OnnxEncoder(written / "export" / "onnx").encode(two_images())
    np.testing.assert_allclose(found, EXPECTED["embeddings_of_two_images"], atol=1e-4)
