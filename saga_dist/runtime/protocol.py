"""The runtime as commands see it: what the coordinator asks of one, and a fresh learner for another configuration."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saga_dist.config import RunConfig
from saga_dist.protocols import Runtime


@runtime_checkable
class ReusableRuntime(Runtime, Protocol):
    """A runtime whose workers serve several runs, one after the other (rows of a table)."""

    def reset_learner(self, config: RunConfig) -> None:
        """Puts a fresh learner for ``config`` in place; the workers hold only frozen weights and stay as they are."""
