"""The command ``saga-dist search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import ENCODER_HELP, Family, print_line
from saga_dist.cli.encoder import load_encoder
from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import probe_output, replaced_file
from saga_dist.utils.library_logging import quiet_libraries


def search(
    index_folder: Annotated[Path, typer.Argument(help="folder from saga-dist index", metavar="INDEX")],
    image: Annotated[Path, typer.Argument(help="the image to search with", metavar="IMAGE")],
    k: Annotated[int, typer.Option("-k", min=1, help="number of images")] = 5,
    model: Annotated[
        Path | None, typer.Option(help=f"{ENCODER_HELP}; default: the folder that embedded the images")
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
    if sheet is not None:
        probe_output(sheet, option="--sheet")
    opened = open_index(index_folder)
    folder = model_folder(model or Path(opened.model.folder))
    identity = read_identity(folder)
    # search_image checks this too; checked here first because loading the model takes seconds.
    opened.model.refuse_other(identity, where=str(index_folder))
    matches = search_image(opened, load_encoder(folder, device, family), identity, image, k)
    for rank, match in enumerate(matches, start=1):
        print_line(f"{rank:>3}  {match.score:.4f}  {match.path}")
    if sheet is not None:
        with replaced_file(sheet, option="--sheet") as file:
            contact_sheet(image, matches).save(file, "PNG")
        print_line(f"contact sheet: {sheet}")
