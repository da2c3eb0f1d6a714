"""Keys and values of completions that grow token by token, in room that is there already.

transformers' own cache copies everything it holds for every token. Here a token is written behind the others, and a
finished row's place goes to the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from saga_dist.models.families.base import KeyValues

ROOM = 64
"""Tokens that a layer gets room for at a time: one copy instead of so many."""


class GrowingRows(Cache):
    """The cache of several rows, each on a prefix of its own; all prefixes are of one length.

    Args:
        prefixes: keys and values of each, batch size 1; copied.
        counts: rows on each.
    """

    def __init__(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> None:
        layers = (
            _GrowingLayer(*(_repeated([prefix[part] for prefix in layer], counts) for part in (0, 1)))
            for layer in zip(*prefixes, strict=True)
        )
        super().__init__(layers=list(layers))
        self._num_rows = sum(counts)

    def drop(self, rows: Collection[int]) -> list[int]:
        """Takes rows out; returns those that stay, in the order in which they lie now."""
        gone, staying = set(rows), self._num_rows - len(rows)
        order = list(range(staying))
        holes = [row for row in order if row in gone]
        movers = [row for row in range(staying, self._num_rows) if row not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        for layer in self.layers:
            layer.move(movers, holes, staying)
        self._num_rows = staying
        return order


class _GrowingLayer(DynamicLayer):
    """One layer: ``keys`` and ``values`` are the used part of a larger tensor.

    Args:
        keys: [B, H, S, d] of the prefixes; the first token copies them to where there is room.
        values: likewise.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._room = (keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new positions [B, H, T, d] behind the others; returns all."""
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        if stop > self._room[0].shape[2]:
            self._room = (_with_room(self.keys, stop + ROOM), _with_room(self.values, stop + ROOM))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:stop] = new
        self.keys, self.values = (room[:, :, :stop] for room in self._room)
        return self.keys, self.values

    def move(self, sources: Sequence[int], targets: Sequence[int], num_rows: int) -> None:
        """Copies rows over others, then cuts off what lies behind the first ``num_rows``."""
        length = self.keys.shape[2]
        for source, target in zip(sources, targets, strict=True):
            self.keys[target], self.values[target] = self.keys[source], self.values[source]
        self._room = (self._room[0][:num_rows], self._room[1][:num_rows])
        self.keys, self.values = (room[:, :, :length] for room in self._room)


def _repeated(parts_1HSd: Sequence[torch.Tensor], counts: Sequence[int]) -> torch.Tensor:
    """Prefixes one below the other, each as often as it has rows."""
    return torch.cat([part.expand(count, -1, -1, -1) for part, count in zip(parts_1HSd, counts, strict=True)])


def _with_room(used: torch.Tensor, length: int) -> torch.Tensor:
    room = used.new_empty(*used.shape[:2], length, used.shape[3])
    room[:, :, : used.shape[2]] = used
    return room
