"""Sections of other files as parts of a page, and links between them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("hooks_on_the_path")

README = """# Title

Intro.

## One idea

Text with a [page](docs/other.md#part), [code](package/module.py) and `[no](link)`.

```
# no heading
[no](docs/link.md)
```

### Inside

More, as [above](#one-idea).

## Next

Other.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a README, a module, a deployment page and three pages of the site."""
    files = {
        "README.md": README,
        "package/module.py": "",
        "deploy/README.md": "# Clusters\n\nSee [ideas](../README.md#one-idea).\n",
        "docs/page.md": "# Page\n\n[One idea](../README.md#one-idea)\n\nThe end, [here](../README.md#inside).\n",
        "docs/clusters.md": "[Clusters](../deploy/README.md)\n",
        "docs/other.md": "# Other\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def rendered(root: Path, page: str) -> str:
    """Returns the Markdown of a page as the hook makes it."""
    from sections import Places, with_sections, with_site_links

    places = Places(root)
    text = (root / "docs" / page).read_text()
    return with_site_links(with_sections(text, root, places), f"docs/{page}", places)


def test_a_link_that_stands_alone_becomes_the_section(root: Path) -> None:
    text = rendered(root, "page.md")
    assert text.startswith("# Page\n\n## One idea\n\nText with")
    assert "### Inside" in text and "## Next" not in text and "Intro." not in text
    assert text.endswith("The end, [here](page.md#inside).\n")


def test_links_lead_to_pages_and_links_to_code_become_text(root: Path) -> None:
    text = rendered(root, "page.md")
    assert "a [page](other.md#part), code and" in text
    assert "as [above](page.md#one-idea)." in text
    assert "# no heading\n[no](docs/link.md)\n```" in text, "fenced blocks stay as they are"


def test_a_file_becomes_a_page(root: Path) -> None:
    assert rendered(root, "clusters.md") == "# Clusters\n\nSee [ideas](page.md#one-idea).\n\n"


def test_a_section_or_file_that_is_not_there_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "docs" / "page.md").write_text(
        "[Gone](../README.md#gone)\n\nSee [this](../README.md#next), [that](../no.py).\n"
    )
    with caplog.at_level(logging.WARNING, "mkdocs.plugins.sections"):
        assert "See this, that." in rendered(root, "page.md")
    assert [record.getMessage() for record in caplog.records] == [
        "README.md has no section #gone",
        "docs/page.md links to ../README.md#next, which is not on the site",
        "docs/page.md links to ../no.py, which is not on the site",
    ]


def test_names_of_keys_and_metrics_become_links() -> None:
    from reference_pages import with_reference_links

    text = "# `data.root`\n\n`data.root` and `share/tower_grpo`, not `data.root=x` nor [`data.root`](x.md)\n"
    text += "```\n`data.root`\n```"
    assert with_reference_links(text) == (
        "# `data.root`\n\n[`data.root`](configuration.md#data-root) and "
        "[`share/tower_grpo`](metrics.md#share-tower_dml), not `data.root=x` nor [`data.root`](x.md)\n"
        "```\n`data.root`\n```"
    )


def test_equations_become_mathml() -> None:
    from equations import with_equations

    text = with_equations("Before\n\n```math\n\\frac{a}{b}\n```\n\n```\nmath\n```")
    assert text.startswith('Before\n\n<div class="equation"><math') and "<mfrac>" in text
    assert text.endswith("```\nmath\n```")


def test_long_names_in_code_may_break_after_a_separator() -> None:
    from mkdocs_hook import on_page_content

    block = "<pre><span></span><code>some/long/path.py</code></pre>"
    html = f"<td><code>tests/a/test_b.py::test_c</code> <code>a/b</code></td>{block}"
    assert on_page_content(html) == (
        "<td><code>tests/<wbr>a/<wbr>test_<wbr>b.<wbr>py::<wbr>test_<wbr>c</code> <code>a/b</code></td>" + block
    )
