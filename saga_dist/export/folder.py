"""Writing an exported encoder: one new folder, compared with the run's own encoder before it gets its name.

hf                      what ``saga_dist.load`` reads, and a model card
sentence-transformers   the same, and what SentenceTransformer(folder) wants to find
onnx                    one graph with the preprocessing in it; see onnx_encoder.py
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saga_dist.errors import ModelError
from saga_dist.export import onnx_encoder
from saga_dist.export.card import model_card
from saga_dist.models.encoder import CONTENT, WEIGHTS_NAME, Encoder, load
from saga_dist.models.encoder import MANIFEST_NAME as ENCODER_MANIFEST
from saga_dist.retrieval.identity import ModelIdentity, model_folder, read_identity
from saga_dist.utils.atomic_io import file_sha256, new_folder

MIN_COSINE = 0.9999
NUM_CHECKED = 16
NUM_TIMED = 5
CARD_NAME = "README.md"
ST_MODULE = "saga_dist.export.st_module.SagaEncoder"
_SEED = 0


@dataclass(frozen=True, slots=True)
class Exported:
    """What ``export_encoder`` wrote."""

    identity: ModelIdentity
    num_params: int
    num_bytes: int
    """Of the weights or the graph."""
    ms_per_image: float
    """Milliseconds of the exported encoder here, preprocessing included, in one batch."""
    min_cosine: float
    """The smallest cosine between an exported and the run's own embedding of the same image."""
    num_checked: int
    """Images behind it."""


def export_encoder(run: Path, out: Path, *, form: str, family: str = "") -> Exported:
    """Writes an encoder into a new folder and returns how it compares with the one it came from.

    Args:
        run: run directory, or an encoder's own folder.
        out: does not exist yet, or is empty.
        form: hf, sentence-transformers or onnx.
        family: import path of the encoder's model family, where it is not built in.

    Raises:
        CheckpointError: there is no encoder, or it is damaged.
        ConfigError: ``out`` is in use, or a package is missing.
        ModelError: the exported encoder gives other embeddings, or its family is not built in and none is named;
            nothing is left at ``out``.
    """
    source = model_folder(run)
    encoder, identity = load(source, family=family), read_identity(source)
    write = {"hf": _write_hf, "sentence-transformers": _write_sentence_transformers, "onnx": _write_onnx}[form]
    images = _noise(encoder.image_size)
    with new_folder(out) as folder:
        encode = write(encoder, source, folder, family)
        num_params = sum(parameter.numel() for parameter in encoder.parameters())
        num_bytes = (folder / (onnx_encoder.GRAPH_NAME if form == "onnx" else WEIGHTS_NAME)).stat().st_size
        config = json.loads((source / "config.json").read_text("utf-8"))
        card = model_card(run, form=form, identity=identity, config=config, num_params=num_params, num_bytes=num_bytes)
        (folder / CARD_NAME).write_text(card, "utf-8")
        exported_IE = encode(images)  # the first batch also pays for memory and kernels
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


def _write_hf(encoder: Encoder, source: Path, folder: Path, family: str) -> Encode:
    # Copied, not saved again: the files keep their hashes and the versions that made them.
    for name in (*CONTENT, ENCODER_MANIFEST):
        shutil.copyfile(source / name, folder / name)
    return load(folder, family=family).encode


def _write_sentence_transformers(encoder: Encoder, source: Path, folder: Path, family: str) -> Encode:
    try:
        import sentence_transformers

        from saga_dist.export.st_module import SagaEncoder
    except ImportError as error:
        raise onnx_encoder.missing_package(error) from error
    _write_hf(encoder, source, folder, family)
    modules = [{"idx": 0, "name": "0", "path": "", "type": ST_MODULE}]
    settings = {
        "__version__": {"sentence_transformers": sentence_transformers.__version__, "pytorch": torch.__version__},
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    for name, content in (("modules.json", modules), ("config_sentence_transformers.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    model = sentence_transformers.SentenceTransformer(
        modules=[SagaEncoder(load(folder, family=family))], device="cpu", similarity_fn_name="cosine"
    )
    return lambda images: np.asarray(model.encode(list(images), show_progress_bar=False))


def _write_onnx(encoder: Encoder, source: Path, folder: Path, family: str) -> Encode:
    try:
        import onnx
        import onnxscript  # noqa: F401  (what torch.onnx needs, and would miss only half-way)
    except ImportError as error:
        raise onnx_encoder.missing_package(error) from error
    from saga_dist.export.onnx_graph import build_graph

    example = torch.zeros(2, encoder.image_size, encoder.image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch's own
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
    graph.save(folder / onnx_encoder.GRAPH_NAME, external_data=False)
    onnx.checker.check_model(folder / onnx_encoder.GRAPH_NAME)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(source / name, folder / name)
    digests = {name: file_sha256(folder / name) for name in onnx_encoder.CONTENT}
    (folder / onnx_encoder.MANIFEST_NAME).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", "utf-8")
    return onnx_encoder.OnnxEncoder(folder).encode


def _seconds(encode: Encode, images: Sequence[np.ndarray]) -> float:
    started = time.perf_counter()
    encode(images)
    return time.perf_counter() - started


def _noise(size: int) -> list[np.ndarray]:
    """Images on which encoders that differ would differ: coarse random colours, every image its own."""
    generator = np.random.default_rng(_SEED)
    coarse = generator.integers(0, 256, (NUM_CHECKED, 5, 5, 3), dtype=np.uint8)
    rows = np.arange(size) * 5 // size
    return list(coarse[:, rows][:, :, rows])
