"""The KV cache of autoregressive decoding: several completions per prompt, the prompt's keys and values stored once.

    softmax over [prompt | own],  the prompt's part one matrix product for all rows of a group

transformers' own cache stores the prompt for every row, reads all of it for every token, and copies it for every token.
Here a prompt's keys and values are stored and read once for all its rows; a row's own tokens are appended to memory
allocated in advance; the last row moves into the place of a finished one.

Products and softmax are float32 whatever the dtype of the cache, as in the fused kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from saga_dist.models.families.key_values import KeyValues

ROOM = 64
"""Tokens that a layer allocates memory for at a time: one copy instead of so many."""


class SharedPrefixKVCache:
    """Keys and values of several rows, each on one of several prefixes of one length; an ``AttentionContext``.

    Args:
        prefixes: keys and values of each, batch size 1; copied.
        counts: rows on each; those of the first prefix come first.
    """

    def __init__(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> None:
        self._layers = [
            _Layer(*(torch.cat([prefix[part] for prefix in layer]) for part in (0, 1)))
            for layer in zip(*prefixes, strict=True)
        ]
        self._prefix_of = [prefix for prefix, count in enumerate(counts) for _ in range(count)]
        self._places = self._build_places()

    def attend(
        self, layer: int, query_BH1d: torch.Tensor, key_Bh1d: torch.Tensor, value_Bh1d: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Stores one more token of each row in one layer; returns its attention output there, [B, 1, H, d]."""
        kept = self._layers[layer]
        keys_BhTd, values_BhTd = kept.append(key_Bh1d, value_Bh1d)
        query_Bhnd = query_BH1d.unflatten(1, (key_Bh1d.shape[1], -1))[:, :, :, 0].float() * scale
        places = self._places.to(query_Bhnd.device)
        prefix_length = kept.prefix_keys_PhSd.shape[2]
        to_prefix_BhnS = places.from_prefixes(places.to_prefixes(query_Bhnd) @ kept.prefix_keys_PhSd.float().mT)
        weights_BhnK = torch.cat([to_prefix_BhnS, query_Bhnd @ keys_BhTd.float().mT], dim=-1).softmax(-1)
        to_prefix_BhnS, to_own_BhnT = weights_BhnK.split((prefix_length, keys_BhTd.shape[2]), dim=-1)
        seen_Bhnd = places.from_prefixes(places.to_prefixes(to_prefix_BhnS) @ kept.prefix_values_PhSd.float())
        seen_Bhnd = seen_Bhnd + to_own_BhnT @ values_BhTd.float()
        return seen_Bhnd.flatten(1, 2)[:, None].to(query_BH1d.dtype)

    def drop(self, rows: Collection[int]) -> list[int]:
        """Removes rows; returns the indices of those that stay, in their new order."""
        gone, before = set(rows), len(self._prefix_of)
        staying = before - len(rows)
        order = list(range(staying))
        holes = [row for row in order if row in gone]
        movers = [row for row in range(staying, before) if row not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        for layer in self._layers:
            layer.move(movers, holes, staying)
        self._prefix_of = [self._prefix_of[row] for row in order]
        self._release_unused_prefixes()
        self._places = self._build_places()
        return order

    def _build_places(self) -> _Places:
        first = self._layers[0].prefix_keys_PhSd
        return _Places.of(self._prefix_of, len(first), first.device)

    def _release_unused_prefixes(self) -> None:
        """Drops the prefixes without rows once they are half of all; the others are copied."""
        needed = sorted(set(self._prefix_of))
        if 2 * len(needed) > len(self._layers[0].prefix_keys_PhSd):
            return
        for layer in self._layers:
            layer.keep_prefixes(needed)
        self._prefix_of = [needed.index(prefix) for prefix in self._prefix_of]


class _Places:
    """Arranges rows by their prefix, for one matrix product: C places per prefix, some of them empty.

    Args:
        places_B: int64, place of each row among all P * C.
        shape: (P, C).
    """

    def __init__(self, places_B: torch.Tensor, shape: tuple[int, int]) -> None:
        self._places_B, self._shape = places_B, shape

    @classmethod
    def of(cls, prefix_of: Sequence[int], num_prefixes: int, device: torch.device) -> _Places:
        """Returns the places of rows on these prefixes."""
        taken = [0] * num_prefixes
        columns = []
        for prefix in prefix_of:
            columns.append(taken[prefix])
            taken[prefix] += 1
        width = max(taken, default=0)
        places = [prefix * width + column for prefix, column in zip(prefix_of, columns, strict=True)]
        return cls(torch.tensor(places, dtype=torch.int64, device=device), (num_prefixes, width))

    def to(self, device: torch.device) -> _Places:
        """Returns the same places for a layer on another device."""
        return _Places(self._places_B.to(device), self._shape)

    def to_prefixes(self, values_Bhnx: torch.Tensor) -> torch.Tensor:
        """Returns [P, h, C * n, x]: the rows of each prefix below each other, zeros in empty places."""
        num_prefixes, width = self._shape
        placed = values_Bhnx.new_zeros(num_prefixes * width, *values_Bhnx.shape[1:])
        placed[self._places_B] = values_Bhnx
        return placed.unflatten(0, self._shape).transpose(1, 2).flatten(2, 3)

    def from_prefixes(self, values_Phmx: torch.Tensor) -> torch.Tensor:
        """Returns [B, h, n, x], the inverse of ``to_prefixes``."""
        placed = values_Phmx.unflatten(2, (self._shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return placed[self._places_B]


class _Layer:
    """Keys and values of one layer: the prefixes' [P, h, S, d], and the rows' own in allocated memory [B, h, R, d]."""

    def __init__(self, prefix_keys_PhSd: torch.Tensor, prefix_values_PhSd: torch.Tensor) -> None:
        self.prefix_keys_PhSd, self.prefix_values_PhSd = prefix_keys_PhSd, prefix_values_PhSd
        self._length = 0
        self._room: tuple[torch.Tensor, ...] = ()

    def append(self, key_Bh1d: torch.Tensor, value_Bh1d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Appends a token to each row; returns keys and values [B, h, T, d] of all own tokens."""
        if not self._length % ROOM:
            news = (key_Bh1d, value_Bh1d)
            olds = self._room or tuple(new[:, :, :0] for new in news)
            self._room = tuple(_with_room(old, self._length + ROOM) for old in olds)
        for room, new in zip(self._room, (key_Bh1d, value_Bh1d), strict=True):
            room[:, :, self._length] = new[:, :, 0]
        self._length += 1
        return tuple(room[:, :, : self._length] for room in self._room)

    def move(self, sources: Sequence[int], targets: Sequence[int], num_rows: int) -> None:
        """Copies rows over others, then keeps the first ``num_rows``."""
        for room in self._room:
            for source, target in zip(sources, targets, strict=True):
                room[target, :, : self._length] = room[source, :, : self._length]
        self._room = tuple(room[:num_rows] for room in self._room)

    def keep_prefixes(self, prefixes: Sequence[int]) -> None:
        """Drops all other prefixes."""
        self.prefix_keys_PhSd = self.prefix_keys_PhSd[list(prefixes)]
        self.prefix_values_PhSd = self.prefix_values_PhSd[list(prefixes)]


def _with_room(used_BhTd: torch.Tensor, length: int) -> torch.Tensor:
    room = used_BhTd.new_empty(*used_BhTd.shape[:2], length, used_BhTd.shape[3])
    room[:, :, : used_BhTd.shape[2]] = used_BhTd
    return room
