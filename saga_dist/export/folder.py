"""Writes an exported encoder into a new folder, after comparing it with the run's own encoder.

hf                      the files that ``saga_dist.load`` reads, and a model card
sentence-transformers   the same, and the files that SentenceTransformer(folder) reads
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
from saga_dist.export.card import model_card
from saga_dist.models.encoder import CONTENT, WEIGHTS_NAME, Encoder, load
from saga_dist.models.encoder import MANIFEST_NAME as ENCODER_MANIFEST
from saga_dist.retrieval.identity import ModelIdentity, model_folder, read_identity
from saga_dist.utils.atomic_io import file_sha256, new_folder, require_new
from saga_dist.utils.directory_owner import owned_output
from saga_dist.utils.output_files import copy_file, write_file

MIN_COSINE = 0.9999
"""Smallest cosine similarity allowed between an exported embedding and the run's own."""
NUM_CHECKED = 16
"""Images on which the two encoders are compared."""
NUM_TIMED = 5
"""Timed batches; the fastest one counts."""
CARD_NAME = "README.md"
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
    """Size in bytes of the weight file, or of the ONNX graph."""
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
    source = model_folder(run)
    require_new(out, option="--out")  # known before the seconds that the model takes to load
    with owned_output(out, option="--out"):
        return _export(run, source, out, form=form, family=family)


def _export(run: Path, source: Path, out: Path, *, form: str, family: str) -> Exported:
    encoder, identity = load(source, family=family), read_identity(source)
    write = {"hf": _write_hf, "sentence-transformers": _write_sentence_transformers, "onnx": _write_onnx}[form]
    images = _noise(encoder.image_size)
    with new_folder(out) as folder:
        encode = write(encoder, source, folder, family)
        num_params = sum(parameter.numel() for parameter in encoder.parameters())
        num_bytes = (folder / (onnx_encoder.GRAPH_NAME if form == "onnx" else WEIGHTS_NAME)).stat().st_size
        config = json.loads((source / "config.json").read_text("utf-8"))
        card = model_card(run, form=form, identity=identity, config=config, num_params=num_params, num_bytes=num_bytes)
        write_file(folder / CARD_NAME, card)
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


def _write_hf(encoder: Encoder, source: Path, folder: Path, family: str) -> Encode:
    # Copied instead of saved again, so that the files keep their hashes and the versions of their packages.
    for name in (*CONTENT, ENCODER_MANIFEST):
        copy_file(source / name, folder / name)
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
        write_file(folder / name, json.dumps(content, indent=2) + "\n")
    model = sentence_transformers.SentenceTransformer(
        modules=[SagaEncoder(load(folder, family=family))], device="cpu", similarity_fn_name="cosine"
    )
    return lambda images: np.asarray(model.encode(list(images), show_progress_bar=False))


def _write_onnx(encoder: Encoder, source: Path, folder: Path, family: str) -> Encode:
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
    graph.save(folder / onnx_encoder.GRAPH_NAME, external_data=False)
    onnx.checker.check_model(folder / onnx_encoder.GRAPH_NAME)
    for name in ("config.json", "preprocessor_config.json"):
        copy_file(source / name, folder / name)
    digests = {name: file_sha256(folder / name) for name in onnx_encoder.CONTENT}
    write_file(folder / onnx_encoder.MANIFEST_NAME, json.dumps({"sha256": digests}, indent=2) + "\n")
    return onnx_encoder.OnnxEncoder(folder).encode


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
