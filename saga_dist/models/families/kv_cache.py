"""KV cache of autoregressive decoding that stores the keys and values of a prefix once for all its completions.

    softmax over [prefix | own],  with one matrix product for the prefix part of all rows of a group

transformers' cache stores the prefix for every row, and for every token it reads and copies all of it. In this cache, a
prefix is stored once, and read once per token for all its rows. The own tokens of a row are appended to memory that is
allocated in advance. When a row finishes, the last row is moved into its place.

Products and softmax are float32 for any dtype of the cache, as in fused attention kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from saga_dist.models.families.key_values import KeyValues

TOKENS_PER_ALLOCATION = 64
"""Number of tokens for which a layer allocates memory at a time, so that it copies once per that many tokens."""


class SharedPrefixKVCache:
    """Keys and values of several rows, each on one of several prefixes of equal length; an ``AttentionContext``.

    Args:
        prefixes: keys and values of each prefix, batch size 1; they are copied.
        counts: number of rows on each prefix; the rows of the first prefix come first.
    """

    def __init__(self, prefixes: Sequence[KeyValues], counts: Sequence[int]) -> None:
        self._layers = [
            _LayerCache(*(torch.cat([prefix[part] for prefix in layer]) for part in (0, 1)))
            for layer in zip(*prefixes, strict=True)
        ]
        self._prefix_of = [prefix for prefix, count in enumerate(counts) for _ in range(count)]
        """Index of each row's prefix."""
        self._grouping = self._build_grouping()

    def attend(
        self, layer: int, query_BH1d: torch.Tensor, key_Bh1d: torch.Tensor, value_Bh1d: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Stores one more token of each row in one layer; returns the token's attention output, [B, 1, H, d]."""
        stored = self._layers[layer]
        keys_BhTd, values_BhTd = stored.append(key_Bh1d, value_Bh1d)
        query_Bhnd = query_BH1d.unflatten(1, (key_Bh1d.shape[1], -1))[:, :, :, 0].float() * scale
        grouping = self._grouping.to(query_Bhnd.device)
        prefix_length = stored.prefix_keys_PhSd.shape[2]
        to_prefix_BhnS = grouping.ungroup(grouping.group(query_Bhnd) @ stored.prefix_keys_PhSd.float().mT)
        weights_BhnK = torch.cat([to_prefix_BhnS, query_Bhnd @ keys_BhTd.float().mT], dim=-1).softmax(-1)
        to_prefix_BhnS, to_own_BhnT = weights_BhnK.split((prefix_length, keys_BhTd.shape[2]), dim=-1)
        out_Bhnd = grouping.ungroup(grouping.group(to_prefix_BhnS) @ stored.prefix_values_PhSd.float())
        out_Bhnd = out_Bhnd + to_own_BhnT @ values_BhTd.float()
        return out_Bhnd.flatten(1, 2)[:, None].to(query_BH1d.dtype)

    def drop(self, rows: Collection[int]) -> list[int]:
        """Removes rows; returns the former indices of the remaining rows, in their new order."""
        dropped, num_before = set(rows), len(self._prefix_of)
        num_remaining = num_before - len(rows)
        order = list(range(num_remaining))
        targets = [row for row in order if row in dropped]
        sources = [row for row in range(num_remaining, num_before) if row not in dropped]
        for target, source in zip(targets, sources, strict=True):
            order[target] = source
        for layer in self._layers:
            layer.move(sources, targets, num_remaining)
        self._prefix_of = [self._prefix_of[row] for row in order]
        self._release_unused_prefixes()
        self._grouping = self._build_grouping()
        return order

    def _build_grouping(self) -> _PrefixGrouping:
        first = self._layers[0].prefix_keys_PhSd
        return _PrefixGrouping.of(self._prefix_of, len(first), first.device)

    def _release_unused_prefixes(self) -> None:
        """Drops the prefixes without rows when at least half of all prefixes have none; the others are copied."""
        needed = sorted(set(self._prefix_of))
        if 2 * len(needed) > len(self._layers[0].prefix_keys_PhSd):
            return
        for layer in self._layers:
            layer.keep_prefixes(needed)
        self._prefix_of = [needed.index(prefix) for prefix in self._prefix_of]


class _PrefixGrouping:
    """Groups rows by their prefix into one padded batch: C slots per prefix, some of them empty.

    Args:
        slots_B: int64 [B], slot of each row, in 0 .. P * C - 1.
        shape: (P, C).
    """

    def __init__(self, slots_B: torch.Tensor, shape: tuple[int, int]) -> None:
        self._slots_B, self._shape = slots_B, shape

    @classmethod
    def of(cls, prefix_of: Sequence[int], num_prefixes: int, device: torch.device) -> _PrefixGrouping:
        """Returns the grouping of rows, given the index of each row's prefix."""
        counts = [0] * num_prefixes
        columns = []
        for prefix in prefix_of:
            columns.append(counts[prefix])
            counts[prefix] += 1
        width = max(counts, default=0)
        slots = [prefix * width + column for prefix, column in zip(prefix_of, columns, strict=True)]
        return cls(torch.tensor(slots, dtype=torch.int64, device=device), (num_prefixes, width))

    def to(self, device: torch.device) -> _PrefixGrouping:
        """Returns the same grouping for a layer on another device."""
        return _PrefixGrouping(self._slots_B.to(device), self._shape)

    def group(self, values_Bhnx: torch.Tensor) -> torch.Tensor:
        """Returns [P, h, C * n, x], the rows of each prefix, with zeros in empty slots."""
        num_prefixes, width = self._shape
        grouped = values_Bhnx.new_zeros(num_prefixes * width, *values_Bhnx.shape[1:])
        grouped[self._slots_B] = values_Bhnx
        return grouped.unflatten(0, self._shape).transpose(1, 2).flatten(2, 3)

    def ungroup(self, values_Phmx: torch.Tensor) -> torch.Tensor:
        """Returns [B, h, n, x], the inverse of ``group``."""
        grouped = values_Phmx.unflatten(2, (self._shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return grouped[self._slots_B]


class _LayerCache:
    """Keys and values of one layer: of the prefixes, [P, h, S, d], and of the rows' own tokens.

    The own tokens are in buffers [B, h, allocated, d], of which the first ``_length`` tokens are used.
    """

    def __init__(self, prefix_keys_PhSd: torch.Tensor, prefix_values_PhSd: torch.Tensor) -> None:
        self.prefix_keys_PhSd, self.prefix_values_PhSd = prefix_keys_PhSd, prefix_values_PhSd
        self._length = 0
        self._buffers: tuple[torch.Tensor, ...] = ()

    def append(self, key_Bh1d: torch.Tensor, value_Bh1d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Appends a token to each row; returns keys and values of all own tokens, [B, h, T, d] each."""
        if not self._length % TOKENS_PER_ALLOCATION:
            used = self._buffers or tuple(new[:, :, :0] for new in (key_Bh1d, value_Bh1d))
            self._buffers = tuple(_enlarged(buffer, self._length + TOKENS_PER_ALLOCATION) for buffer in used)
        for buffer, new in zip(self._buffers, (key_Bh1d, value_Bh1d), strict=True):
            buffer[:, :, self._length] = new[:, :, 0]
        self._length += 1
        return tuple(buffer[:, :, : self._length] for buffer in self._buffers)

    def move(self, sources: Sequence[int], targets: Sequence[int], num_rows: int) -> None:
        """Copies the rows ``sources`` over the rows ``targets``, then drops all but the first ``num_rows``."""
        for buffer in self._buffers:
            for source, target in zip(sources, targets, strict=True):
                buffer[target, :, : self._length] = buffer[source, :, : self._length]
        self._buffers = tuple(buffer[:num_rows] for buffer in self._buffers)

    def keep_prefixes(self, prefixes: Sequence[int]) -> None:
        """Drops all other prefixes."""
        self.prefix_keys_PhSd = self.prefix_keys_PhSd[list(prefixes)]
        self.prefix_values_PhSd = self.prefix_values_PhSd[list(prefixes)]


def _enlarged(used_BhTd: torch.Tensor, length: int) -> torch.Tensor:
    """Returns a buffer for ``length`` tokens that starts with the used tokens."""
    buffer = used_BhTd.new_empty(*used_BhTd.shape[:2], length, used_BhTd.shape[3])
    buffer[:, :, : used_BhTd.shape[2]] = used_BhTd
    return buffer
