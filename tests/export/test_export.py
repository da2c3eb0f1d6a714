"""Exported encoders give the trainer's own embeddings, read back in a clean process that has no trainer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import saga_dist
from saga_dist.cli.main import app
from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import CheckpointError, ConfigError, ModelError, OutputError, SagaError
from saga_dist.export.folder import FORMATS, export_encoder
from saga_dist.export.onnx_encoder import CONTENT
from saga_dist.retrieval.identity import read_identity
from saga_dist.retrieval.results import MethodResult, Results, SplitResult
from saga_dist.runtime.build import build_learner
from saga_dist.utils.file_manifest import write_manifest

pytestmark = pytest.mark.integration

READERS = {
    "hf": "import saga_dist\nfound = saga_dist.load(folder).encode(images)\n",
    "sentence-transformers": "from saga_dist.export.st_module import load_model\n"
    "found = load_model(folder, device='cpu').encode(images)\n",
    "onnx": "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
    "from saga_dist.export.onnx_encoder import OnnxEncoder\nfound = OnnxEncoder(folder).encode(images)\n",
}


def config() -> RunConfig:
    """The shipped stand-in on two images of each of the 50 test species."""
    birds = {"train_classes": 2, "train_images_per_class": 2, "val_images_per_class": 2, "test_images_per_class": 2}
    return parse_config(
        {
            "data": {
                "layout": "birds",
                "image_size": 80,
                "batch_size": 4,
                "images_per_class": 2,
                "birds": birds | {"probe_images": 0},
            },
            "prompt": {"vocabulary": "standin_birds"},
            "model": {"path": "standin", "dtype": "float32", "embedding_dim": 64, "pooler_key": "mlp"},
            "objective": {"kl_layer": 1},
            "rollout": {"pairs_per_batch": 4},
            "runtime": {"kind": "serial"},
        },
        where="test",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as training leaves it: model/, config.json, results.json; and the trainer's embeddings."""
    folder = tmp_path_factory.mktemp("run")
    learner = build_learner(config())
    learner.save_encoder(folder / "model")
    embeddings = learner.embed("test")
    np.savez(folder.with_suffix(".npz"), embeddings=embeddings.values_IE, images=_test_images())
    (folder / "config.json").write_text(config().model_dump_json())
    found = SplitResult(
        recall_at_1=0.3125,
        recall_at_2=0.4,
        recall_at_4=0.5,
        recall_at_8=0.6,
        nmi=0.4321,
        confidence_interval=(0.25, 0.375),
        num_queries=100,
        num_classes=50,
    )
    method = MethodResult(
        name="trained", splits={"test": found}, seeds=(0,), wall_s=1.0, optimizer_steps=7, selected_step=5
    )
    Results(methods=[method]).save(folder / "results.json")
    return folder


def _test_images() -> np.ndarray:
    from saga_dist.runtime.build import build_splits

    test = build_splits(config().data, seed=0).test
    return np.stack([test.image(index) for index in range(len(test))])


@pytest.fixture(scope="module", params=list(FORMATS))
def exported(request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Format and folder, made by the command."""
    folder = tmp_path_factory.mktemp("exported") / request.param
    done = CliRunner().invoke(app, ["export", str(run), "--format", request.param, "--out", str(folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert re.search(r"parameters, 2\.\d MB, \d+\.\d ms an image", done.stdout)
    assert re.search(r"cosine (1\.0|0\.9999)\d+ or more", done.stdout)
    return request.param, folder


def ranking(embeddings_IE: np.ndarray) -> np.ndarray:
    """The ten nearest others of each image, by fp64 cosine."""
    cosines_II = embeddings_IE.astype(np.float64) @ embeddings_IE.astype(np.float64).T
    np.fill_diagonal(cosines_II, -np.inf)
    return np.argsort(-cosines_II, axis=1, kind="stable")[:, :10]


def test_a_clean_process_finds_the_trainers_embeddings_and_neighbours(
    exported: tuple[str, Path], run: Path, tmp_path: Path
) -> None:
    form, folder = exported
    program = (
        "import sys\n"
        "for name in ('ray', 'vllm', 'faiss', 'pyarrow'): sys.modules[name] = None\n"
        "import numpy as np\nfrom PIL import Image\n"
        f"folder = {str(folder)!r}\n"
        f"images = [Image.fromarray(image) for image in np.load({str(run.with_suffix('.npz'))!r})['images']]\n"
        f"{READERS[form]}"
        f"assert found.dtype == np.float32\nnp.save({str(tmp_path / 'found.npy')!r}, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found_IE, own_IE = np.load(tmp_path / "found.npy"), np.load(run.with_suffix(".npz"))["embeddings"]
    assert found_IE.shape == own_IE.shape == (100, 64)
    assert (found_IE.astype(np.float64) * own_IE).sum(1).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(found_IE, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(ranking(found_IE), ranking(own_IE))


def test_the_card_has_the_runs_own_figures(exported: tuple[str, Path], run: Path) -> None:
    form, folder = exported
    card = (folder / "README.md").read_text()
    assert f"`{read_identity(run / 'model').sha256}`" in card
    assert "| trained | test | 31.2 | 25.0 – 37.5 | 40.0 | 50.0 | 60.0 | 0.432 | 100 | 50 |" in card
    assert "This encoder is the row trained, step 5 of 7." in card
    assert "| started from | standin |" in card
    assert "Written with numpy" in card
    assert str(run) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, form, "exec")
    assert "this/folder" in code


def test_the_card_remarks_on_queries_that_cannot_be_found(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results.load(run / "results.json")
    lost = {"test": results.methods[0].splits["test"].model_copy(update={"num_unfindable": 5})}
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    Results(methods=[results.methods[0].model_copy(update={"splits": lost})]).save(path)
    folder = tmp_path / "hf"
    export_encoder(tmp_path, folder, form="hf")
    card = (folder / "README.md").read_text()
    assert "test: 5 of 100 queries cannot be found and count as misses: their class has no other image." in card


def test_what_was_exported_is_the_same_model_and_can_be_exported_again(
    exported: tuple[str, Path], run: Path, tmp_path: Path
) -> None:
    form, folder = exported
    if form == "onnx":
        with pytest.raises(CheckpointError, match=r"holds no saved encoder"):
            export_encoder(folder, tmp_path / "again", form="hf")
        return
    assert read_identity(folder).sha256 == read_identity(run / "model").sha256
    export_encoder(folder, tmp_path / "again", form="hf")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "## Training" not in (tmp_path / "again" / "README.md").read_text()


def test_damage_is_found_when_it_is_read(exported: tuple[str, Path], tmp_path: Path) -> None:
    form, folder = exported
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / ("model.onnx" if form == "onnx" else "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{weights.name}: was altered"):
        _read(form, tmp_path)


def test_every_file_but_the_card_is_listed_with_hash_and_size(exported: tuple[str, Path]) -> None:
    _, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {*sizes} - {*manifest["sha256"]} == {"README.md", "manifest.json"}
    assert manifest["size_bytes"] == {name: sizes[name] for name in manifest["sha256"]}


def test_weights_outside_of_a_large_graph_are_listed_and_checked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.onnx._internal.exporter import _onnx_program

    from saga_dist.export.onnx_encoder import OnnxEncoder

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 100_000)
    done = export_encoder(run, tmp_path / "out", form="onnx")
    weights = tmp_path / "out" / "model.onnx.data"
    assert done.num_bytes == weights.stat().st_size + (tmp_path / "out" / "model.onnx").stat().st_size
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["size_bytes"]["model.onnx.data"] == weights.stat().st_size > 1_000_000
    OnnxEncoder(tmp_path / "out")
    content = weights.read_bytes()
    weights.write_bytes(content[:-240_000] + bytes(240_000))
    with pytest.raises(CheckpointError, match=r"model.onnx.data: was altered"):
        OnnxEncoder(tmp_path / "out")
    weights.write_bytes(content)
    write_manifest(tmp_path / "out", CONTENT)  # as an export of version 0.1.0
    with pytest.raises(CheckpointError, match=r"model.onnx.data: is not listed .* export the encoder again"):
        OnnxEncoder(tmp_path / "out")


def _read(form: str, folder: Path) -> None:
    if form == "onnx":
        from saga_dist.export.onnx_encoder import OnnxEncoder

        OnnxEncoder(folder)
    elif form == "hf":
        saga_dist.load(folder)
    else:
        from saga_dist.export.st_module import SagaEncoder

        SagaEncoder.load(str(folder))


def test_an_export_with_other_embeddings_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, family: str) -> object:
        (tmp_path / "seen").touch()
        return lambda images: np.roll(saga_dist.load(run).encode(images), 1, axis=1)

    monkeypatch.setitem(FORMATS, "hf", replace(FORMATS["hf"], read=read))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"have cosine .* with the run's own; expected 0.9999 or more"):
        export_encoder(run, tmp_path / "out", form="hf")
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "seen"]


def test_mistakes_are_one_error(run: Path, tmp_path: Path) -> None:
    def invoke(*arguments: object) -> SagaError:
        done = CliRunner().invoke(app, ["export", *map(str, arguments)])
        assert isinstance(done.exception, SagaError)
        assert done.exception.exit_code == 2
        return done.exception

    assert "unknown format 'pickle'; expected hf, sentence-transformers, onnx" in str(
        invoke(run, "--out", tmp_path / "a", "--format", "pickle")
    )
    assert "holds no saved encoder" in str(invoke(tmp_path, "--out", tmp_path / "a"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert "there is something already" in str(invoke(run, "--out", tmp_path / "used"))
    with pytest.raises(OutputError, match="there is something already"):
        export_encoder(run, tmp_path / "used" / "file", form="hf")


def test_a_missing_package_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install 'saga-dist\[export\]'"):
        export_encoder(run, tmp_path / "out", form="onnx")
    assert list(tmp_path.iterdir()) == []


def test_hostile_names_stay_text_in_the_card(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["methods"][0]["name"] = "<script>|x](y)\n# head"
    for name in ("model", "config.json"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "results.json").write_text(json.dumps(results))
    export_encoder(tmp_path, tmp_path / "out", form="hf")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| &lt;script>/x)(y) # head | test |" in card
