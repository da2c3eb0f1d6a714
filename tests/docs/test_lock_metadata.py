"""Every locked package finds what it asks for in its lock file, by the packages' metadata, as `pip check` would say.

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


def requirements_of(name: str, pin: str) -> list[Requirement]:
    """Returns what an installed package of this version asks for; nothing for another version or none."""
    try:
        texts = requires(name) or [] if version(name).split("+")[0] == pin else []
    except PackageNotFoundError:
        return []
    asked = map(Requirement, texts)
    return [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]


def is_met(wanted: Requirement, found: str | None) -> bool:
    if found is None:
        return wanted.name in LEFT_OUT
    # torch's wheels for CPUs have a local version, 2.13.0+cpu, that a lock file of plain pins does not name.
    return any(wanted.specifier.contains(found + local, prereleases=True) for local in ("", "+cpu"))


@pytest.mark.parametrize("pins", [CPU, GPU], ids=["CPU", "GPU"])
def test_every_package_finds_what_it_asks_for(pins: dict[str, str]) -> None:
    wrong = [
        f"{name} {pin}: {wanted}, found {pins.get(canonicalize_name(wanted.name))}"
        for name, pin in pins.items()
        for wanted in requirements_of(name, pin)
        if not is_met(wanted, pins.get(canonicalize_name(wanted.name)))
    ]
    assert wrong == []
