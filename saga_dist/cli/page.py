"""Writes the HTML page of ``saga-dist report`` or ``saga-dist rollouts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.cli.arguments import print_line
from saga_dist.utils.atomic_io import probe_output, write_atomic

if TYPE_CHECKING:
    from saga_dist.report.build import Page


def page_target(run: Path, out: Path | None, name: str) -> Path:
    """Returns the file of a page after checking that it can be written.

    Args:
        run: run directory.
        out: value of ``--out``; None when it is not given.
        name: name of the file in the run directory without ``--out``.

    Raises:
        OutputError: the file cannot be written.
    """
    target = out or run / name
    if out is not None or run.is_dir():  # a missing run is reported by what reads it
        probe_output(target, option="--out")
    return target


def write_page(path: Path, page: Page) -> None:
    """Writes the page to ``path`` and prints its summary lines, then its path and size.

    Raises:
        OutputError: the file cannot be written.
    """
    from saga_dist.report.text import shown

    content = page.html.encode()
    write_atomic(path, content, option="--out")
    for line in (*page.lines, f"{path}: {len(content) / 1e6:.1f} MB, open it in a browser"):
        print_line(shown(line))
