"""Writes the HTML page of ``saga-dist report`` or ``saga-dist rollouts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.cli.arguments import print_line
from saga_dist.utils.atomic_io import write_output

if TYPE_CHECKING:
    from saga_dist.report.build import Page


def write_page(path: Path, page: Page) -> None:
    """Writes the page to ``path`` and prints its summary lines, then its path and size.

    Raises:
        ConfigError: the file cannot be written.
    """
    from saga_dist.report.text import shown

    content = page.html.encode()
    write_output(path, content, option="--out")
    for line in (*page.lines, f"{path}: {len(content) / 1e6:.1f} MB, open it in a browser"):
        print_line(shown(line))
