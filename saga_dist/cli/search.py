"""The command ``saga-dist search``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.cli.arguments import ENCODER_HELP, Family, print_line
from saga_dist.cli.encoder import load_encoder
from saga_dist.cli.progress import waiting
from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import probe_output, replaced_file, write_atomic
from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import printable

if TYPE_CHECKING:
    from saga_dist.retrieval.search import Match


def search(
    index_folder: Annotated[Path, typer.Argument(help="folder from saga-dist index", metavar="INDEX")],
    images: Annotated[
        list[Path], typer.Argument(help="images to search with; - reads their paths from stdin", metavar="IMAGE…")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="number of images")] = 5,
    model: Annotated[
        Path | None, typer.Option(help=f"{ENCODER_HELP}; default: the folder that embedded the images")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="write the query and its matches as a picture, .png")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write one line of JSON per query to this file")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    family: Family = "",
) -> None:
    """Print the k nearest images of each image: rank, cosine, path. The model is loaded once."""
    quiet_libraries()
    from saga_dist.data.images import read_image
    from saga_dist.models.encoder_folder import encoder_folder
    from saga_dist.retrieval.identity import read_identity

    queries = _queries(images)
    if sheet is not None:
        _check_sheet(sheet, queries)
    if json_file is not None:
        probe_output(json_file, option="--json")
    with waiting(f"reading {index_folder}"):
        from saga_dist.retrieval.index import open_index
        from saga_dist.retrieval.search import search_images

        opened = open_index(index_folder)
    folder = encoder_folder(model or opened.model.folder)
    identity = read_identity(folder)
    # search_images checks model and images too; checked here first because loading the model takes seconds.
    opened.model.refuse_other(identity, where=str(index_folder))
    read_image(queries[0], identity.image_size)
    encoder = load_encoder(folder, device, family)
    if k > len(opened):
        typer.echo(f"note: -k {k:,}, but {printable(str(index_folder))} has {len(opened):,} images", err=True)
    rows = []
    for query, matches in search_images(opened, encoder, identity, queries, k):
        _print(query, matches, several=len(queries) > 1)
        rows.append(_row(query, matches))
        if sheet is not None:
            _write_sheet(sheet, query, matches)
    if json_file is not None:
        write_atomic(json_file, "".join(f"{json.dumps(row)}\n" for row in rows).encode(), option="--json")


def _queries(images: Sequence[Path]) -> list[Path]:
    """Returns the images with ``-`` replaced by the paths on standard input, one a line.

    Raises:
        DataError: there are none.
    """
    queries: list[Path] = []
    for image in images:
        lines = sys.stdin.read().splitlines() if str(image) == "-" else [str(image)]
        queries += [Path(line) for line in lines if line]
    if not queries:
        raise DataError("no paths of images", where="standard input", expected="one a line")
    return queries


def _print(query: Path, matches: Sequence[Match], *, several: bool) -> None:
    if several:
        print_line(f"{query}:")
    for rank, match in enumerate(matches, start=1):
        print_line(f"{rank:>3}  {match.score:.4f}  {match.path}")


def _row(query: Path, matches: Sequence[Match]) -> dict[str, object]:
    return {
        "query": str(query),
        "matches": [{"id": match.id, "path": str(match.path), "cosine": match.score} for match in matches],
    }


def _check_sheet(sheet: Path, queries: Sequence[Path]) -> None:
    """Refuses a sheet that could not be written, before the seconds that the model takes to load."""
    if sheet.suffix.lower() != ".png":
        raise DataError(f"unknown suffix {sheet.suffix!r}", where=str(sheet), expected=".png")
    if len(queries) > 1:
        raise DataError(f"{len(queries)} images to search with", where="--sheet", expected="one")
    probe_output(sheet, option="--sheet")


def _write_sheet(sheet: Path, query: Path, matches: Sequence[Match]) -> None:
    from saga_dist.retrieval.search import contact_sheet

    with replaced_file(sheet, option="--sheet") as file:
        contact_sheet(query, matches).save(file, "PNG")
    print_line(f"contact sheet: {sheet}")
