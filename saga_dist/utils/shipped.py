"""Files that are shipped with the package: configurations, pages and deployment templates.

A wheel holds them in ``saga_dist/shipped``; an editable installation takes them from its checkout. Both have the same
folders: ``configs``, ``deploy`` and ``docs``. The built pages, which git does not keep, are in ``shipped/site`` of a
wheel and in ``build/site`` of a checkout.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder() -> Path:
    """Returns the folder that holds ``configs``, ``deploy`` and ``docs``."""
    packed = _PACKAGE / "shipped"
    return packed if packed.is_dir() else _PACKAGE.parent


def site_folder() -> Path:
    """Returns the folder of the built documentation; it exists only where the documentation was built."""
    packed = _PACKAGE / "shipped"
    return packed / "site" if packed.is_dir() else _PACKAGE.parent / "build" / "site"


def find_shipped(path: Path) -> Path:
    """Returns a file of the user's, or the shipped one of that path where there is none.

    Args:
        path: the path, e.g. ``configs/evidence/results.json``.

    Returns:
        An existing file, or ``path`` itself where neither exists.
    """
    shipped = shipped_folder() / path
    return below_here(shipped) if not path.exists() and ".." not in path.parts and shipped.is_file() else path


def shipped_page(name: str) -> str:
    """Returns where a page is, for a message.

    Args:
        name: path of the page in the repository, e.g. ``docs/evidence.md``.

    Returns:
        The path of the shipped page, relative to the working directory where it lies below; ``name`` itself where the
        page is not installed.
    """
    return str(find_shipped(Path(name)))


def below_here(path: Path) -> Path:
    """Returns an absolute path relative to the working directory where it lies below, else unchanged."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
