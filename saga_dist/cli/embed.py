"""The command ``saga-dist embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import ENCODER_HELP, Family, print_line
from saga_dist.cli.encoder import load_encoder
from saga_dist.cli.progress import counted, waiting
from saga_dist.utils.library_logging import quiet_libraries


def embed(
    model: Annotated[Path, typer.Argument(help=ENCODER_HELP, metavar="MODEL")],
    folder: Annotated[Path, typer.Argument(help="folder of images, searched at every depth", metavar="FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="file to write, .arrow or .parquet; the same command resumes")],
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="share of images that may be unusable")] = 0.05,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="threads that decode; 0: one per core")] = 0,
    family: Family = "",
) -> None:
    """Embed a folder of images; resumes, and later embeds only what is new or changed."""
    quiet_libraries()
    from saga_dist.data.left_out import summary
    from saga_dist.models.encoder_folder import encoder_folder
    from saga_dist.retrieval.embed import embed_folder, list_images
    from saga_dist.retrieval.identity import read_identity
    from saga_dist.retrieval.tables import check_suffix
    from saga_dist.utils.directory_owner import owned_output

    # Check the arguments before the seconds that the model takes to load.
    check_suffix(out)
    with waiting(f"listing the images in {folder}"):
        list_images(folder)
    saved = encoder_folder(model)
    with owned_output(out, option="--out"), counted("embedding", "image") as on_progress:
        encoder = load_encoder(saved, device, family)
        done = embed_folder(
            encoder,
            read_identity(saved),
            folder,
            out,
            max_bad_share=max_bad,
            jobs=jobs,
            on_progress=on_progress,
        )
    for reason in done.bad[:10]:
        print_line(f"cannot be used: {reason}")
    if done.bad:
        print_line(f"{len(done.bad):,} images cannot be used, listed in {done.bad_list}")
    if done.left_out:
        print_line(f"{folder}: {summary(done.left_out)}")
    print_line(f"{out}: {done.num_images:,} embeddings, {done.num_new:,} of them new")
