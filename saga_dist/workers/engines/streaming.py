"""Decides whether an engine is used group by group (``protocols.StreamingEngine``) or by its ``generate`` alone."""

from __future__ import annotations

from saga_dist.protocols import Engine, StreamingEngine


def as_streaming(engine: Engine) -> StreamingEngine | None:
    """Returns the engine when groups can join and leave its batch, else None.

    A class that inherits ``add``, ``step`` and ``abort``, and replaces ``generate`` alone, is used by ``generate``: the
    inherited methods do not have what it adds.
    """
    if not isinstance(engine, StreamingEngine):
        return None
    steps, generates = (_defining_class(engine, name) for name in ("step", "generate"))
    return engine if issubclass(steps, generates) else None


def _defining_class(engine: Engine, name: str) -> type:
    """Returns the class whose method of this name the engine has; its own class when the method is not in a class."""
    return next((kind for kind in type(engine).__mro__ if name in vars(kind)), type(engine))
