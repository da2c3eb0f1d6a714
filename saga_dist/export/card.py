"""The model card: README.md of an exported encoder, built from the run's own configuration and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.retrieval.results import MethodResult, Results, unfindable_remarks

CARD_NAME = "README.md"
OWN_ROWS = ("trained", "SAGA")
"""Names under which ``train`` and ``demo`` report the encoder of the run directory."""

USAGE = {
    "hf": """import saga_dist

encoder = saga_dist.load("this/folder")
embeddings = encoder.encode(["a.jpg", "b.jpg"])  # float32 [n, {width}], l2-normalised; one image: [{width}]""",
    "sentence-transformers": """from PIL import Image

from saga_dist.export.st_module import load_model

model = load_model("this/folder")  # a SentenceTransformer; no code runs but that of installed packages
embeddings = model.encode([Image.open("a.jpg"), Image.open("b.jpg")])  # float32 [n, {width}], l2-normalised

# SentenceTransformer("this/folder") does the same before version 6, and from then on with trust_remote_code=True.""",
    "onnx": """from saga_dist.export.onnx_encoder import OnnxEncoder  # onnxruntime, numpy and Pillow; no torch

encoder = OnnxEncoder("this/folder")
embeddings = encoder.encode(["a.jpg", "b.jpg"])  # float32 [n, {width}], l2-normalised

# or by hand: whole images, upright, RGB, resized (bicubic, no crop) to {size} x {size}; all else is in the graph
import onnxruntime

session = onnxruntime.InferenceSession("this/folder/model.onnx")
(embeddings,) = session.run(None, {{"images": images}})  # uint8 [n, {size}, {size}, 3]""",
}


def model_card(
    run: Path, *, form: str, identity: ModelIdentity, config: dict[str, Any], num_params: int, num_bytes: int
) -> str:
    """Returns the model card as Markdown.

    Args:
        run: run directory, or an encoder's own folder; the latter has no data about the training.
        form: format of the export, a key of ``USAGE``.
        identity: identity of the encoder.
        config: content of the encoder's config.json.
        num_params: number of parameters of tower and pooler.
        num_bytes: size in bytes of the file of the weights or the graph.

    Raises:
        CheckpointError: the run's config.json cannot be read.
        ConfigError, DataError: the run's config.json or results.json is damaged.
    """
    width = config["pooler"]["embedding_dim"] or config["pooler"]["width"]
    settings, results = _training(run)
    pooler = config["pooler"]
    parts = [
        f"---\n{_metadata(form)}---",
        "# Image-retrieval encoder\n\nA vision tower and a pooler that turn an image into one l2-normalised embedding; "
        "cosine says how alike two images are. Trained with a frozen multimodal LLM as its critic (SAGA, "
        "arXiv 2606.15134), which is not needed any more.",
        f"```python\n{USAGE[form].format(width=width, size=identity.image_size)}\n```",
        _table(
            ("", "value"),
            [
                ("model", f"`{identity.sha256}`"),
                ("tower", f"{identity.family}, {config['dtype']}"),
                ("pooler", f"{pooler['kind']}, key {pooler['key']}" + (", layer norm" if pooler["layer_norm"] else "")),
                ("embedding", f"{width} numbers, cosine"),
                ("image", f"whole image, {identity.image_size} x {identity.image_size}, bicubic"),
                ("size", f"{num_params:,} parameters, {num_bytes / 1e6:.1f} MB"),
            ],
        ),
        "At inference it is tower and pooler alone: the size and the cost of the same encoder trained with a metric "
        "loss only.",
    ]
    if settings is not None:
        parts.append(f"## Training\n\n{_settings(settings)}")
    if results is not None:
        parts.append(f"## Results\n\n{_results(results)}")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(config.get("versions", {}).items()))
    parts.append(f"## Versions\n\nWritten with {_plain(versions)}.")
    return "\n\n".join(parts) + "\n"


def _metadata(form: str) -> str:
    """The YAML that the Hugging Face hub reads at the top of a card."""
    metadata = {
        "library_name": "sentence-transformers" if form == "sentence-transformers" else "saga_dist",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["image-retrieval", "fine-grained", "saga"],
    }
    return str(yaml.safe_dump(metadata, sort_keys=False, default_flow_style=None))


def _training(run: Path) -> tuple[RunConfig | None, Results | None]:
    """Returns a run's configuration and results; both None for a folder that is no run directory, the latter without
    results.json."""
    if not (run / "model").is_dir():
        return None, None
    where = run / "config.json"
    try:
        settings = parse_config(json.loads(where.read_text("utf-8")), where=str(where))
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=str(where)) from error
    except ValueError as error:
        raise ConfigError("not valid JSON", where=str(where)) from error
    results = run / "results.json"
    return settings, Results.load(results) if results.exists() else None


def _settings(config: RunConfig) -> str:
    data, objective, rollout = config.data, config.objective, config.rollout
    rows = [
        ("data", f"{data.layout}, seed {config.run.seed}"),
        ("steps", f"{config.run.steps}, batch {data.batch_size} with {data.images_per_class} images a class"),
        ("started from", Path(config.model.path).name),
        ("metric loss", f"{objective.metric_loss}, weight {objective.lambda_dml:g}"),
        ("likelihood of the right verdict", f"weight {objective.lambda_lm:g}, nothing sampled")
        if objective.signal == "verdict"
        else ("GRPO", f"weight {objective.lambda_lm:g}, {rollout.group_size} completions a pair"),
        ("attention distillation", f"weight {objective.lambda_kl:g}"),
        ("learning rates", f"encoder {config.optimizer.lr_encoder:g}, pooler {config.optimizer.lr_pooler:g}"),
    ]
    if config.model.train != "all":
        rows.insert(3, ("trained part of the tower", config.model.train))
    return _table(("setting", "value"), rows)


def _results(results: Results) -> str:
    heads = ("method", "split", "R@1", "95 % interval", "R@2", "R@4", "R@8", "NMI", "queries", "classes")
    rows = [_result(method, split) for method in results.methods for split in method.splits]
    own = [method for method in results.methods if method.name in OWN_ROWS]
    text = (
        "Retrieval on classes it never trained on (`val` chose the step), in %. The interval is over classes, of one "
        "run: it says nothing about other runs."
    )
    if own:
        text += f" This encoder is the row {own[-1].name}, step {own[-1].selected_step} of {own[-1].optimizer_steps}."
    remarks = "".join(f"\n\n{_plain(remark)}." for remark in unfindable_remarks(results.methods))
    return f"{text}\n\n{_table(heads, rows)}{remarks}"


def _result(method: MethodResult, split: str) -> tuple[str, ...]:
    found = method.splits[split]
    low, high = found.confidence_interval
    recalls = [found.recall_at_1, found.recall_at_2, found.recall_at_4, found.recall_at_8]
    percent = [f"{100 * value:.1f}" for value in recalls]
    return (
        method.name,
        split,
        percent[0],
        f"{100 * low:.1f} – {100 * high:.1f}",
        *percent[1:],
        f"{found.nmi:.3f}",
        f"{found.num_queries:,}",
        f"{found.num_classes:,}",
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("--",) * len(heads), *(tuple(_plain(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Returns the text without characters that end a table cell or begin markup, because names come from the user."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown.replace("|", "/").replace("<", "&lt;").replace("[", "(").replace("]", ")")
