"""The command ``saga-dist docs``: opens the built pages of the documentation."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import print_line
from saga_dist.errors import ConfigError


def docs(
    page: Annotated[str, typer.Argument(help="page to open: metrics, configuration, …", metavar="[PAGE]")] = "index",
    path: Annotated[bool, typer.Option("--path", help="print where the page is, and open nothing")] = False,
) -> None:
    """Open the documentation in the browser; it is read from the disk."""
    import webbrowser

    from saga_dist.utils.shipped import site_folder

    file = _find_page(site_folder(), page)
    print_line(str(file))
    if not path:
        webbrowser.open(file.as_uri())


def _find_page(folder: Path, page: str) -> Path:
    """Returns the file of a page.

    Raises:
        ConfigError: the pages are not built, or there is no such page.
    """
    pages = sorted(file.stem for file in folder.glob("*.html") if file.stem != "404")
    if not pages:
        raise ConfigError(
            "the documentation is not built",
            where=str(folder),
            fix="run `make docs` in a checkout, or install a wheel that `make wheel` made",
        )
    if page not in pages:
        close = difflib.get_close_matches(page.partition(".")[0], pages, n=1)
        raise ConfigError(
            f"there is no page {page!r}",
            where=str(folder),
            expected=f"one of {', '.join(pages)}",
            fix=f"did you mean {close[0]}?" if close else "",
        )
    return folder / f"{page}.html"
