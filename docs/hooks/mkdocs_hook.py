"""MkDocs hook of the site: adds the generated pages, and turns the Markdown of the repository into that of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from equations import with_equations
from mkdocs.structure.files import File, Files
from reference_pages import configuration_page, metrics_page, with_reference_links
from sections import Places, with_sections, with_site_links

ROOT = Path(__file__).resolve().parents[2]
_LONG_CODE = re.compile(r"(?<!</span>)<code>([^<]{13,})</code>")
"""Code within a line; code of blocks follows a span."""
_SEPARATOR = re.compile(r"(?<=[/_.:=])(?=[A-Za-z])")
GENERATED = {"configuration.md": configuration_page, "metrics.md": metrics_page}
"""Pages that are made from the models of the configuration and from the registry of metrics."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages to those in the folder docs."""
    for name, text in GENERATED.items():
        files.append(File.generated(config, name, content=text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the Markdown of a page with the sections that it takes from other files, equations and links."""
    name = page.file.src_uri
    if name in GENERATED:
        return markdown
    places = Places(ROOT)
    text = with_sections(markdown, ROOT, places)
    return with_equations(with_reference_links(with_site_links(text, f"docs/{name}", places)))


def on_page_content(html: str, **_: Any) -> str:
    """Returns the HTML of a page in which long names in code may break after a separator, and nowhere else."""
    return _LONG_CODE.sub(lambda code: f"<code>{_SEPARATOR.sub('<wbr>', code[1])}</code>", html)
