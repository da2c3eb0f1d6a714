"""The one way in which a check fails."""

from __future__ import annotations


def require(holds: bool, message: str) -> None:
    """Does nothing where ``holds``; unlike a plain assert, ``python -O`` keeps it.

    Raises:
        AssertionError: with ``message``.
    """
    if not holds:
        raise AssertionError(message)
