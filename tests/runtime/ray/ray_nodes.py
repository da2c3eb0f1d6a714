"""Starts of Ray nodes for the scripts of this folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

Started = TypeVar("Started")


def start_node(start: Callable[[], Started], *, attempts: int = 3) -> Started:
    """Returns what ``start`` returns; on a busy machine a node may miss the 30 s that Ray gives it."""
    for attempt in range(1, attempts):
        try:
            return start()
        except Exception as error:  # noqa: BLE001 - Ray raises no other class for it
            logging.getLogger("ray_nodes").error("attempt %d of %d: %s", attempt, attempts, error)
    return start()
