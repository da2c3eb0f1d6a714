"""The documentation site: built without a warning and without a network, complete, with links that lead somewhere."""

from __future__ import annotations

import html.parser
import logging
import posixpath
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from saga_dist.config.reference import config_keys
from saga_dist.metrics.registry import all_metrics

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("hooks_on_the_path")]


class Page(html.parser.HTMLParser):
    """Ids, links and loaded files of one page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += [values[name] for name in ("src", "href") if name in values and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, hooks_on_the_path: None) -> Path:
    """The folder of the built site; a warning, or a connection to anywhere, ends the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the build of the documentation opened a connection")

    folder = tmp_path_factory.mktemp("docs") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        assert config.strict, "a warning ends the build"
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page of the site, by the name of its file."""
    return {file.relative_to(site).as_posix(): Page(file) for file in site.rglob("*.html")}


def test_every_page_of_the_folder_is_built(pages: dict[str, Page]) -> None:
    written = {f"{file.stem}.html" for file in (ROOT / "docs").glob("*.md")}
    assert written | {"configuration.html", "metrics.html"} <= pages.keys()


def test_nothing_is_loaded_from_a_network(site: Path, pages: dict[str, Page]) -> None:
    assert {load for page in pages.values() for load in page.loads if urlsplit(load).netloc} == set()
    styles = "".join(file.read_text("utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", styles) == []


def test_links_and_anchors_lead_to_pages_of_the_site(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        if name == "404.html":
            continue
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = name
            if parts.path:
                path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            anchors = pages[path].ids if path in pages else set()
            if not (site / path).exists() or (
                parts.fragment and path in pages and unquote(parts.fragment) not in anchors
            ):
                broken.append((name, link))
    assert broken == []


def test_every_key_and_metric_has_its_entry(site: Path, pages: dict[str, Page]) -> None:
    keys = {key.key.replace(".", "-") for key in config_keys()}
    assert keys <= pages["configuration.html"].ids
    text = (site / "metrics.html").read_text("utf-8")
    shown = text.replace("<wbr>", "")
    assert {metric.name for metric in all_metrics() if f"<code>{metric.name}</code>" not in shown} == set()


def test_entries_link_to_each_other(pages: dict[str, Page]) -> None:
    assert "configuration.html#rollout-max_tokens" in pages["metrics.html"].links
    assert "metrics.html#rollout-truncated_share" in pages["configuration.html"].links
    assert "metrics.html#rollout-truncated_share" in pages["troubleshooting.html"].links


def test_sections_of_other_files_and_equations_are_in_the_pages(site: Path, pages: dict[str, Page]) -> None:
    assert "what-the-demo-shows" in pages["index.html"].ids
    assert "4-kuberay" in pages["clusters.html"].ids
    assert (site / "how-it-works.html").read_text("utf-8").count("<math") == 5
    assert "saga_dist.testing.reward.check_reward" in pages["api.html"].ids


def test_the_search_index_holds_the_entries(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text("utf-8")
    assert "rollout.max_staleness" in index and "rollout/truncated_share" in index
