"""Sections of README.md, CONTRIBUTING.md and deploy/*.md as parts of pages, and links between all of them.

A paragraph of a page that is only a link to such a section, ``[One idea](../README.md#one-idea)``, is replaced by the
section; a link to a file without ``#`` by the whole file. So every text stands in one file: a reader of the repository
finds a link, and a reader of the site the text.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from pymdownx.slugs import slugify

log = logging.getLogger("mkdocs.plugins.sections")
slug: Callable[[str, str], str] = slugify(case="lower")

_ALONE = re.compile(r"^\[[^\]\n]+\]\((\.\./[^)\s#]+\.md)(?:#([^)\s]+))?\)$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")


class Places:
    """Where the files and sections of the repository stand on the site.

    Args:
        root: folder of the repository.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pages: dict[tuple[str, str], str] = {}
        for page in sorted((root / "docs").glob("*.md")):
            for target, anchor in _ALONE.findall(page.read_text("utf-8")):
                file = posixpath.normpath(f"docs/{target}")
                for inner in _anchors(root / file, anchor):
                    self._pages[file, inner] = page.name

    def page_of(self, file: str, anchor: str) -> str | None:
        """Returns the page and anchor that show a place of the repository; None when no page does.

        Args:
            file: path from the root of the repository.
            anchor: slug of a heading; empty for the file itself.
        """
        if file.startswith("docs/"):
            return file.removeprefix("docs/") + (f"#{anchor}" if anchor else "")
        page = self._pages.get((file, anchor))
        return page and page + (f"#{anchor}" if anchor else "")

    def is_file(self, file: str) -> bool:
        """Returns True when the repository has this file or folder."""
        return (self._root / file).exists()


def with_sections(markdown: str, root: Path, places: Places) -> str:
    """Returns the Markdown of a page with every link that stands alone replaced by the section that it names."""

    def section(match: re.Match[str]) -> str:
        file = posixpath.normpath(f"docs/{match[1]}")
        text = _section((root / file).read_text("utf-8"), match[2] or "")
        if not text:
            log.warning("%s has no section #%s", file, match[2])
        return with_site_links(text, file, places)

    return _ALONE.sub(section, markdown)


def with_site_links(markdown: str, file: str, places: Places) -> str:
    """Returns Markdown with links to files of the repository turned into links of the site.

    A link to a file that is not on the site, such as a module, becomes its text.

    Args:
        markdown: the text.
        file: path from the root of the file that the text is from; relative links start there.
        places: where files and sections stand on the site.
    """

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path, _, anchor = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(file), path)) if path else file
        place = places.page_of(wanted, anchor)
        if place is not None:
            return f"{image}[{text}]({place})"
        if anchor or not places.is_file(wanted):
            log.warning("%s links to %s, which is not on the site", file, target)
        return text

    return outside_fences(markdown, lambda text: _LINK.sub(link, text))


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Returns Markdown with a change to every line that is not in a fenced block."""
    lines, fence = [], ""
    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
            lines.append(line)
        else:
            lines.append(line if fence else change(line))
    return "\n".join(lines)


def _headings(text: str) -> list[tuple[int, int, str]]:
    """Returns line, level and slug of every heading outside fenced blocks."""
    found: list[tuple[int, int, str]] = []
    marked = outside_fences(text, lambda line: f"\0{line}")
    for number, line in enumerate(marked.split("\n")):
        heading = re.match(r"\0(#+) (.*)", line)
        if heading:
            found.append((number, len(heading[1]), slug(heading[2].replace("`", ""), "-")))
    return found


def _section(text: str, anchor: str) -> str:
    """Returns a section with its heading and its sub-sections; the whole text for no anchor, "" where there is none."""
    if not anchor:
        return text
    lines, headings = text.split("\n"), _headings(text)
    for index, (number, level, name) in enumerate(headings):
        if name == anchor:
            ends = [line for line, other, _ in headings[index + 1 :] if other <= level]
            return "\n".join(lines[number : ends[0] if ends else len(lines)]).strip()
    return ""


def _anchors(file: Path, anchor: str) -> list[str]:
    """Returns the anchors of a section and of its sub-sections; for the whole file, an empty one too."""
    text = file.read_text("utf-8")
    inner = [name for _, _, name in _headings(_section(text, anchor))]
    return inner if anchor else ["", *inner]
