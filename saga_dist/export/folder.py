"""Writes an exported encoder into a new folder, after comparing it with the run's own encoder.

hf                      the files that ``saga_dist.load`` reads, and a model card
sentence-transformers   the same, and the files that name its module; st_module.load_model reads them
onnx                    one graph that includes the preprocessing; see onnx_encoder.py
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saga_dist.errors import ModelError
from saga_dist.export import onnx_encoder
from saga_dist.export.card import CARD_NAME, model_card
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.encoder_folder import CONFIG_NAME, CONTENT, GRAPH_NAME, PREPROCESSING_NAME, encoder_folder
from saga_dist.retrieval.identity import ModelIdentity, read_identity
from saga_dist.utils.atomic_io import new_folder, require_new
from saga_dist.utils.directory_owner import owned_output
from saga_dist.utils.file_manifest import WEIGHT_SUFFIXES, write_manifest
from saga_dist.utils.output_files import copy_file, write_file
from saga_dist.utils.stages import stage

MIN_COSINE = 0.9999
"""Smallest cosine similarity allowed between an exported embedding and the run's own."""
NUM_CHECKED = 16
"""Images on which the two encoders are compared."""
NUM_TIMED = 5
"""Timed batches; the fastest one counts."""
ST_MODULE = "saga_dist.export.st_module.SagaEncoder"
"""Class that sentence-transformers imports to load the module."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of ``export_encoder``."""

    identity: ModelIdentity
    """Identity of the exported encoder."""
    num_params: int
    """Number of parameters of tower and pooler."""
    num_bytes: int
    """Size in bytes of the files with weights."""
    ms_per_image: float
    """Milliseconds per image of the exported encoder on this machine, in one batch, preprocessing included."""
    min_cosine: float
    """Smallest cosine similarity between an exported embedding and the run's own embedding of the same image."""
    num_checked: int
    """Number of images behind ``min_cosine``."""


def export_encoder(run: Path, out: Path, *, form: str, family: str = "") -> Exported:
    """Writes an encoder into a new folder and compares it with the original.

    Args:
        run: run directory, or an encoder's own folder.
        out: folder to write, which must be absent or empty.
        form: ``hf``, ``sentence-transformers`` or ``onnx``.
        family: import path of the encoder's model family, where it is not built in.

    Returns:
        Sizes, speed and the comparison.

    Raises:
        CheckpointError: there is no encoder, or it is damaged.
        ConfigError: a package is missing.
        OutputError: ``out`` is in use or cannot be written.
        ModelError: the exported embeddings differ from the original ones, or the family is not built in and none is
            named; nothing is left at ``out``.
    """
    source = encoder_folder(run)
    require_new(out, option="--out")  # known before the seconds that the model takes to load
    with owned_output(out, option="--out"):
        return _export(run, source, out, form=form, family=family)


def _export(run: Path, source: Path, out: Path, *, form: str, family: str) -> Exported:
    stage("loading the encoder %s", source)
    encoder, identity = load(source, family=family), read_identity(source)
    files = FORMATS[form]
    images = _noise(encoder.image_size)
    with new_folder(out) as folder:
        stage("writing %s", form)
        files.write(encoder, source, folder)
        write_manifest(folder, [path.name for path in folder.iterdir()])
        encode = files.read(folder, family)
        num_params = sum(parameter.numel() for parameter in encoder.parameters())
        num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
        config = json.loads((source / CONFIG_NAME).read_text("utf-8"))
        card = model_card(run, form=form, identity=identity, config=config, num_params=num_params, num_bytes=num_bytes)
        write_file(folder / CARD_NAME, card)
        stage("comparing %d embeddings with the run's own", len(images))
        exported_IE = encode(images)  # not timed: the first batch also allocates memory and compiles kernels
        ms_per_image = min(_seconds(encode, images) for _ in range(NUM_TIMED)) * 1000 / len(images)
        cosine_I = (exported_IE.astype(np.float64) * encoder.encode(images)).sum(1)
        if not cosine_I.min() >= MIN_COSINE:
            raise ModelError(
                f"exported embeddings have cosine {cosine_I.min():.6f} with the run's own",
                where=f"--format {form}",
                expected=f"{MIN_COSINE} or more",
                fix="export with --format hf and report it",
            )
    return Exported(identity, num_params, num_bytes, ms_per_image, float(cosine_I.min()), len(images))


Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Function from I uint8 images [S, S, 3] to float32 embeddings [I, E]."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """Functions that write and read the files of one format; manifest and model card are the same for all."""

    write: Callable[[Encoder, Path, Path], None]
    """Writes an encoder, given with the folder that it was loaded from, into an empty folder."""
    read: Callable[[Path, str], Encode]
    """Returns the exported encoder of a folder as its users read it; the second argument is the import path of the
    model family."""


def _write_hf(encoder: Encoder, source: Path, folder: Path) -> None:
    # Copied instead of saved again, so that the files keep their hashes and the versions of their packages.
    for name in CONTENT:
        copy_file(source / name, folder / name)


def _read_hf(folder: Path, family: str) -> Encode:
    return load(folder, family=family).encode


def _write_sentence_transformers(encoder: Encoder, source: Path, folder: Path) -> None:
    try:
        import sentence_transformers
    except ImportError as error:
        raise onnx_encoder.missing_package(error) from error
    _write_hf(encoder, source, folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": ST_MODULE}]
    settings = {
        "__version__": {"sentence_transformers": sentence_transformers.__version__, "pytorch": torch.__version__},
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    for name, content in (("modules.json", modules), ("config_sentence_transformers.json", settings)):
        write_file(folder / name, json.dumps(content, indent=2) + "\n")


def _read_sentence_transformers(folder: Path, family: str) -> Encode:
    from saga_dist.export.st_module import load_model

    model = load_model(folder, device="cpu", family=family)
    return lambda images: np.asarray(model.encode(list(images), show_progress_bar=False))


def _write_onnx(encoder: Encoder, source: Path, folder: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx needs it and would report it missing only during the export)
    except ImportError as error:
        raise onnx_encoder.missing_package(error) from error
    from saga_dist.export.onnx_graph import build_graph

    example = torch.zeros(2, encoder.image_size, encoder.image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised inside torch about its own code
        graph = torch.onnx.export(
            build_graph(encoder),
            (example,),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            dynamo=True,
            verbose=False,
        )
    assert graph is not None
    # Above 1.5 GB of weights torch writes them into a second file, model.onnx.data, whatever external_data says.
    graph.save(folder / GRAPH_NAME, external_data=False)
    onnx.checker.check_model(folder / GRAPH_NAME)
    for name in (CONFIG_NAME, PREPROCESSING_NAME):
        copy_file(source / name, folder / name)


def _read_onnx(folder: Path, family: str) -> Encode:
    return onnx_encoder.OnnxEncoder(folder).encode


FORMATS = {
    "hf": ExportFormat(_write_hf, _read_hf),
    "sentence-transformers": ExportFormat(_write_sentence_transformers, _read_sentence_transformers),
    "onnx": ExportFormat(_write_onnx, _read_onnx),
}
"""Formats by the name of ``--format``."""


def _seconds(encode: Encode, images: Sequence[np.ndarray]) -> float:
    started = time.perf_counter()
    encode(images)
    return time.perf_counter() - started


def _noise(size: int) -> list[np.ndarray]:
    """Returns ``NUM_CHECKED`` different uint8 images [size, size, 3], each a grid of 5 x 5 random colours."""
    generator = np.random.default_rng(_SEED)
    coarse = generator.integers(0, 256, (NUM_CHECKED, 5, 5, 3), dtype=np.uint8)
    rows = np.arange(size) * 5 // size
    return list(coarse[:, rows][:, :, rows])
