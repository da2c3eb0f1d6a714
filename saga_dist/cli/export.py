"""The commands that use a trained encoder: export, embed, index, search. Heavy imports happen inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from saga_dist.errors import DataError
from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from saga_dist.retrieval.index import Kind

FORMATS = ("hf", "sentence-transformers", "onnx")
MODEL_HELP = "run directory, or the folder of an encoder"
Family = Annotated[
    str,
    typer.Option(
        "--family",
        help="package.module:object of the encoder's model family, where it is not built in; runs that code",
        metavar="PATH",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for name, command in (("export", export), ("embed", embed), ("index", index), ("search", search)):
        app.command(name)(command)


def export(
    run: Annotated[Path, typer.Argument(help=MODEL_HELP, metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="new folder")],
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "hf",
    family: Family = "",
) -> None:
    """Write the encoder (tower and pooler, no MLLM) in a form that other software reads, with a model card."""
    if form not in FORMATS:
        raise DataError(f"unknown format {form!r}", where="--format", expected=", ".join(FORMATS))
    quiet_libraries()
    from saga_dist.export.folder import export_encoder

    done = export_encoder(run, out, form=form, family=family)
    _say(f"{out}: {form}, model {done.identity.sha256[:12]}")
    _say(f"{done.num_params:,} parameters, {done.num_bytes / 1e6:.1f} MB, {done.ms_per_image:.1f} ms an image here")
    _say(f"checked: cosine {done.min_cosine:.6f} or more against the run's own encoder on {done.num_checked} images")


def embed(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    folder: Annotated[Path, typer.Argument(help="folder of images, searched at every depth", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="file to write, .arrow or .parquet; the same command resumes")],
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="share of images that may be unusable")] = 0.05,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="threads that decode; 0: one per core")] = 0,
    family: Family = "",
) -> None:
    """Embed a folder of images; resumes, and later embeds only what is new or changed."""
    quiet_libraries()
    from saga_dist.retrieval.embed import embed_folder, list_images
    from saga_dist.retrieval.identity import model_folder, read_identity
    from saga_dist.retrieval.tables import check_suffix

    # Mistakes come before the seconds that the model takes to load.
    check_suffix(out)
    list_images(folder)
    encoder_folder = model_folder(model)
    encoder = _load(encoder_folder, device, family)
    with _progress() as progress:
        task = progress.add_task("embedding", total=None)
        done = embed_folder(
            encoder,
            read_identity(encoder_folder),
            folder,
            out,
            max_bad_share=max_bad,
            jobs=jobs,
            on_progress=lambda number, total: progress.update(task, completed=number, total=total),
        )
    for reason in done.bad[:10]:
        _say(f"cannot be used: {reason}")
    if done.bad:
        _say(f"{len(done.bad):,} images cannot be used, listed in {done.bad_list}")
    _say(f"{out}: {done.num_images:,} embeddings, {done.num_new:,} of them new")


def index(
    embeddings: Annotated[Path, typer.Argument(help="file from saga-dist embed", metavar="EMBEDDINGS")],
    out: Annotated[Path, typer.Option("--out", help="new folder")],
    kind: Annotated[str, typer.Option(help="flat (exact), hnsw or ivf")] = "flat",
) -> None:
    """Build a faiss index, with progress; prints the recall of hnsw and ivf against exact search."""
    from saga_dist.retrieval.index import RECALL_AT, build_index
    from saga_dist.retrieval.tables import read_embeddings

    table = read_embeddings(embeddings)
    with _progress() as progress:
        task = progress.add_task("indexing", total=None)
        done = build_index(
            table,
            out,
            kind=cast("Kind", kind),
            on_progress=lambda number, total: progress.update(task, completed=number, total=total),
        )
    _say(
        f"{out}: {kind} index of {done.num_images:,} images, {done.width} wide, built in {done.build_s:.1f} s, "
        f"{done.num_bytes / 1e6:.1f} MB"
    )
    if done.num_queries:
        _say(
            f"recall@{RECALL_AT} against exact {done.recall:.4f} ({done.num_queries:,} queries), "
            f"{done.search_us:.0f} µs a query; exact {done.exact_us:.0f} µs"
        )


def search(
    index_folder: Annotated[Path, typer.Argument(help="folder from saga-dist index", metavar="INDEX")],
    image: Annotated[Path, typer.Argument(help="the image to search with", metavar="IMAGE")],
    k: Annotated[int, typer.Option("-k", min=1, help="how many images")] = 5,
    model: Annotated[
        Path | None, typer.Option(help=f"{MODEL_HELP}; without it, where it was when the images were embedded")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="write query and matches as a picture, .png")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    family: Family = "",
) -> None:
    """Print the k nearest images: rank, cosine, path."""
    quiet_libraries()
    from saga_dist.retrieval.identity import model_folder, read_identity
    from saga_dist.retrieval.index import open_index
    from saga_dist.retrieval.search import contact_sheet, search_image

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise DataError(f"unknown suffix {sheet.suffix!r}", where=str(sheet), expected=".png")
    opened = open_index(index_folder)
    folder = model_folder(model or Path(opened.model.folder))
    identity = read_identity(folder)
    # Once before the model is loaded, which takes seconds.
    opened.model.refuse_other(identity, where=str(index_folder))
    matches = search_image(opened, _load(folder, device, family), identity, image, k)
    for rank, match in enumerate(matches, start=1):
        _say(f"{rank:>3}  {match.score:.4f}  {match.path}")
    if sheet is not None:
        try:
            contact_sheet(image, matches).save(sheet)
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror or error})", where=str(sheet)) from error
        _say(f"contact sheet: {sheet}")


def _load(folder: Path, device: str, family: str) -> Any:
    from saga_dist.models.encoder import load

    try:
        return load(folder, device=device, family=family)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot be used ({reason})", where=f"--device {device}", expected="cpu or cuda") from error


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _say(line: str) -> None:
    typer.echo(printable(line))
