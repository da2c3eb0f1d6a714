"""The sections of the check, in the order in which they run; imports neither torch nor a section."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches

from saga_dist.errors import ConfigError
from saga_dist.runtime.devices import ALLOCATOR_ENVIRONMENT

_PACKAGE = "saga_dist.diagnostics.gpu_check"


@dataclass(frozen=True, slots=True)
class CheckSection:
    """One section: a measurement in a process of its own."""

    name: str
    """Name of the section, as in ``--sections``."""
    function: str
    """Import path ``package.module:object`` of the measurement, from the size's name to results by name."""
    cap_s: float
    """Seconds after which the process is ended."""
    environment: dict[str, str] = field(default_factory=lambda: dict(ALLOCATOR_ENVIRONMENT))
    """Environment variables of the process besides those of this one, which take precedence; by default those of
    learner and replay."""


def _section(name: str, cap_s: float) -> CheckSection:
    return CheckSection(name, f"{_PACKAGE}.{name}:measure", cap_s)


SECTIONS = (
    _section("environment", 45),
    _section("gradients", 60),
    _section("replay", 150),
    _section("precision", 60),
    _section("learner", 90),
    _section("memory", 75),
    CheckSection("memory_fixed_segments", f"{_PACKAGE}.memory:measure", 75, environment={}),
    _section("start", 120),
    CheckSection("engine", f"{_PACKAGE}.engine:measure", 240, environment={}),
)
"""All sections. The caps together exceed the time of the whole check, because few sections need theirs."""


def chosen_sections(names: str) -> tuple[CheckSection, ...]:
    """Returns sections in the order of ``SECTIONS``.

    Args:
        names: names of sections, separated by commas; empty for all.

    Raises:
        ConfigError: a name is unknown, empty or named twice.
    """
    if not names:
        return SECTIONS
    wanted, all_names = [name.strip() for name in names.split(",")], [section.name for section in SECTIONS]
    for name in wanted:
        if name not in all_names:
            close = get_close_matches(name, all_names, 1)
            raise ConfigError(
                f"no section {name!r}",
                where="--sections",
                expected=f"some of {', '.join(all_names)}, separated by commas",
                fix=f"did you mean {close[0]}?" if close else "",
            )
        if wanted.count(name) > 1:
            raise ConfigError(f"{name} is named twice", where="--sections", expected="each section once")
    return tuple(section for section in SECTIONS if section.name in wanted)
