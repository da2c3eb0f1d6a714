"""The exception with which a section says that there is nothing to measure on this machine."""

from __future__ import annotations

from saga_dist.errors import SagaError


class SectionSkipped(SagaError):
    """A section cannot run here, which is no failure; the message says why."""
