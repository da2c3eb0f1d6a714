"""Every locked package finds what it asks for in its lock file, as `pip check` would say: by the packages' own metadata.

The GPU lock file is not installed here; a package that both files have in one version asks for the same in both.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from docs.test_versions import CPU, GPU
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = {"torchaudio", "torchcodec", "triton"}
"""Packages that vLLM and others list and that the CPU environment does without (docs/versions.md)."""


def unmet(pins: dict[str, str]) -> list[str]:
    """Returns one line for each requirement of a locked package that the lock file does not fulfil."""
    lines = []
    for name, pin in pins.items():
        for text in requirements_of(name, pin):
            wanted = Requirement(text)
            required = canonicalize_name(wanted.name)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            found = pins.get(required)
            if found is None or not wanted.specifier.contains(found, prereleases=True):
                lines.append(f"{name} {pin}: {wanted.name}{wanted.specifier}, found {found}")
    return lines


def requirements_of(name: str, pin: str) -> list[str]:
    """Returns what an installed package of this version asks for; nothing for another version or none."""
    try:
        return requires(name) or [] if version(name).split("+")[0] == pin else []
    except PackageNotFoundError:
        return []


@pytest.mark.parametrize("pins", [CPU, GPU], ids=["CPU", "GPU"])
def test_every_package_finds_what_it_asks_for(pins: dict[str, str]) -> None:
    wrong = [
        line for line in unmet(pins) if line.split(": ")[1].split("=")[0].split("<")[0].split(">")[0] not in LEFT_OUT
    ]
    assert wrong == []
