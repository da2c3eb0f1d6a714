"""Raises the error of a failed check."""

from __future__ import annotations


def require(holds: bool, message: str) -> None:
    """Raises an AssertionError unless a condition holds; unlike ``assert``, also under ``python -O``.

    Args:
        holds: the condition.
        message: message of the error.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not holds:
        raise AssertionError(message)
