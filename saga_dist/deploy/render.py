"""Renders manifests as YAML: keys in insertion order, long texts as blocks, and a header of comments."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from saga_dist.config import RunConfig
from saga_dist.deploy.options import DeployOptions
from saga_dist.deploy.roles import Group, groups

MADE_WITH = "# Made with: saga-dist manifest "
"""Start of the header's line with the command; the same command produces the same file."""


class _Dumper(yaml.SafeDumper):
    """YAML dumper with block style for texts of more than one line, and without aliases for equal parts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def render(documents: Sequence[Mapping[str, Any]], header: Sequence[str] = ()) -> str:
    """Returns one YAML text of all documents, with the lines of ``header`` as comments before them."""
    comments = "".join(f"{line}\n" if line.startswith("#") else f"# {line}\n" for line in header)
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return comments + body


def made_with(arguments: Sequence[str]) -> str:
    """Returns the header's line with the command, from the arguments of ``saga-dist manifest``."""
    return MADE_WITH + shlex.join(arguments)


def summary(config: RunConfig, options: DeployOptions) -> list[str]:
    """Returns header lines with the pods of each group and the GPUs of all groups together.

    Raises:
        ConfigError: configuration and options contradict each other.
    """
    planned = groups(config, options)
    return [
        *(f"  {_line(group)}" for group in planned),
        f"  together: {_total(planned)}, and the head without one",
    ]


def _line(group: Group) -> str:
    pods = f"{group.min_pods} to {group.max_pods}" if group.elastic else f"{group.max_pods}"
    requested = sum(actor.gpus for actor in group.actors)
    idle = f" ({requested:g} asked for)" if abs(group.gpus - requested) > 1e-6 else ""
    actors = ", ".join(f"{count} {role}" for role, count in group.roles.items())
    several = "pod" if pods == "1" else "pods"
    return (
        f"{group.name}: {pods} {several} with GPU {group.gpus}{idle}, CPU {group.cpus}, "
        f"memory {group.memory_gib} + {group.shm_gib} GiB of /dev/shm; takes {actors}"
    )


def _total(planned: Sequence[Group]) -> str:
    low, high = (sum(group.gpus * getattr(group, bound) for group in planned) for bound in ("min_pods", "max_pods"))
    return f"GPU {low}" if low == high else f"GPU {low} to {high}"
