"""Protocol of the runtimes as commands use them: the coordinator's protocol, and learners for further runs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from saga_dist.config import RunConfig
from saga_dist.protocols import Runtime


@runtime_checkable
class ReusableRuntime(Runtime, Protocol):
    """A runtime whose workers serve several runs one after another (the rows of a table)."""

    def reset_learner(self, config: RunConfig) -> None:
        """Replaces the learner by a new one for ``config``; the workers, which have only frozen weights, stay."""
