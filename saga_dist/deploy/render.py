"""Prints manifests as YAML: keys in the order in which they were made, long texts as blocks, a header that explains."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from saga_dist.config import RunConfig
from saga_dist.deploy.options import DeployOptions
from saga_dist.deploy.roles import Group, groups

MADE_WITH = "# Made with: saga-dist manifest "
"""What the header's line with the command starts with; whoever repeats the command gets the same file."""


class _Dumper(yaml.SafeDumper):
    """Block style for texts of more than one line; no aliases for parts that are equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def render(documents: Sequence[Mapping[str, Any]], header: Sequence[str] = ()) -> str:
    """Returns one YAML text of all documents, ``header`` as comments before them."""
    comments = "".join(f"{line}\n" if line.startswith("#") else f"# {line}\n" for line in header)
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return comments + body


def made_with(arguments: Sequence[str]) -> str:
    """Returns the header's line with the command, from the arguments of ``saga-dist manifest``."""
    return MADE_WITH + shlex.join(arguments)


def summary(config: RunConfig, options: DeployOptions) -> list[str]:
    """Returns header lines that say what the pods are and what they add up to."""
    planned = groups(config, options)
    return [
        *(f"  {_line(group)}" for group in planned),
        f"  together: {_total(planned)}, and the head without one",
    ]


def _line(group: Group) -> str:
    pods = f"{group.min_pods} to {group.max_pods}" if group.elastic else f"{group.max_pods}"
    asked = sum(ask.gpus for ask in group.actors)
    idle = f" ({asked:g} asked for)" if abs(group.gpus - asked) > 1e-6 else ""
    actors = ", ".join(f"{count} {role}" for role, count in group.roles.items())
    several = "pod" if pods == "1" else "pods"
    return (
        f"{group.name}: {pods} {several} with GPU {group.gpus}{idle}, CPU {group.cpus}, "
        f"memory {group.memory_gib} + {group.shm_gib} GiB of /dev/shm; takes {actors}"
    )


def _total(planned: Sequence[Group]) -> str:
    low, high = (sum(group.gpus * getattr(group, bound) for group in planned) for bound in ("min_pods", "max_pods"))
    return f"GPU {low}" if low == high else f"GPU {low} to {high}"
