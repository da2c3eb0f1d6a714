"""Finds configuration files: the user's own, or one that is shipped with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from saga_dist.errors import ConfigError
from saga_dist.utils.shipped import below_here, shipped_folder

CONFIGS = "configs"
"""Folder of the shipped configurations, beside ``docs`` and ``deploy``."""
RUNS = ("", "evidence")
"""Folders below ``configs`` in which a bare name is looked up where a run is configured."""
TABLES = ("tables", "evidence")
"""Folders below ``configs`` in which a bare name is looked up where a table is meant."""
VOCABULARIES = ("vocabularies",)
"""Folders below ``configs`` in which a bare name is looked up where a vocabulary is meant."""
_TABLE_PREFIX = "table_"


def find_config(path: str | Path, *, folders: tuple[str, ...] = RUNS) -> Path:
    """Returns the file that a path or a bare name of a configuration means.

    A file of the user's wins, with ``.toml`` or without. Then the shipped files are searched: ``configs/birds.toml``
    below the folder of shipped files, and ``birds``, ``birds.toml`` or ``evidence/h`` below ``configs`` and its
    ``folders``.

    Args:
        path: path or name as the user typed it.
        folders: folders below ``configs`` in which a bare name is looked up, in this order.

    Returns:
        An existing file, or ``path`` itself where something else is in its place (a folder, a broken link, a path with
        a NUL), so that reading it names the reason.

    Raises:
        ConfigError: there is no such file, and no shipped configuration has this name.
    """
    given = Path(path)
    try:
        for own in (given, given.with_name(f"{given.name}.toml") if given.name else given):
            if own.exists() and not own.is_dir():
                return own
        found = None if given.is_absolute() or ".." in given.parts else _shipped(given, folders)
        if found is None and (given.exists() or given.is_symlink()):
            return given
    except (OSError, ValueError):
        return given
    if found is None:
        raise _not_found(given, folders)
    return found


def shipped_names(folders: tuple[str, ...] = RUNS) -> tuple[str, ...]:
    """Returns the names under which shipped configurations are found, sorted within each of ``folders``."""
    return tuple(
        path.relative_to(shipped_folder() / CONFIGS).with_suffix("").as_posix()
        for folder in folders
        for path in sorted((shipped_folder() / CONFIGS / folder).glob("*.toml"))
        if folder != "evidence" or path.name.startswith(_TABLE_PREFIX) == ("tables" in folders)
    )


def _shipped(given: Path, folders: tuple[str, ...]) -> Path | None:
    root = shipped_folder()
    if given.parts[:1] == (CONFIGS,):
        places = [root / given]
    else:
        places = [root / CONFIGS / folder / given for folder in (*folders, "")]
    for place in places:
        for file in (place, place.with_name(f"{place.name}.toml")):
            if file.is_file():
                return below_here(file)
    return None


def _not_found(given: Path, folders: tuple[str, ...]) -> ConfigError:
    names = () if given.is_absolute() else shipped_names(folders)
    stems = {name.rpartition("/")[2]: name for name in names}
    close = difflib.get_close_matches(given.stem, stems, n=1, cutoff=0.6)
    return ConfigError(
        "cannot read the file (No such file or directory)",
        where=str(given),
        expected=f"a TOML file, or the name of a shipped one: {', '.join(names)}" if names else "",
        fix=f"did you mean {stems[close[0]]}?" if close else "check the path",
    )
