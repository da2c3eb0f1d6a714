"""Torch's variable-length flash attention on paper: its arguments are checked and recorded, its results computed."""

from __future__ import annotations

from typing import Any

import torch
from gpu.reference_attention import ReferenceAttention

from saga_dist.models.families.attention_backends import Segments


class RecordedFlash:
    """Stands in for torch's two operators: records what they are given, and answers with the reference attention."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def _segments(self, name: str, offsets: torch.Tensor, tokens: torch.Tensor, longest: int) -> Segments:
        assert offsets.dtype == torch.int32 and offsets.is_contiguous() and offsets.device == tokens.device, name
        lengths = [int(length) for length in offsets.diff()]
        assert offsets[0] == 0 and sum(lengths) == len(tokens), f"{name}: offsets end at the last token"
        assert max(lengths) <= longest, f"{name}: the longest sequence is within its bound"
        return Segments(lengths)

    def _checked(self, *arguments: Any, causal: bool) -> tuple[Segments, Segments]:
        query, key, value, of_queries, of_keys, longest_query, longest_key = arguments
        for tensor in (query, key, value):
            assert tensor.stride(-1) == 1, "the kernel needs a contiguous head"
        assert key.shape == value.shape and query.shape[1] % key.shape[1] == 0
        assert longest_query > 1, "with 1, torch exchanges heads and queries"
        queries = self._segments("queries", of_queries, query, longest_query)
        keys = self._segments("keys", of_keys, key, longest_key)
        self.calls.append({"queries": queries.lengths, "keys": keys.lengths, "causal": causal,
                           "heads": (query.shape[1], key.shape[1])})  # fmt: skip
        return queries, keys

    def forward(self, *arguments: Any, scale: float) -> tuple[torch.Tensor, ...]:
        query, key, value, *_, dropout, causal, debug = arguments
        queries, keys = self._checked(*arguments[:7], causal=causal)
        assert (dropout, debug) == (0.0, False)
        heads = query.transpose(0, 1).unflatten(0, (key.shape[1], -1))
        out, lse = ReferenceAttention().forward(
            heads, key.transpose(0, 1), value.transpose(0, 1), queries, keys, causal=causal, scale=scale
        )
        nothing = torch.empty(0)
        return out.flatten(0, 1).transpose(0, 1).contiguous(), lse.flatten(0, 1), nothing, nothing, nothing

    def backward(self, *arguments: Any, scale: float) -> tuple[torch.Tensor, ...]:
        gradient, query, key, value, out, lse, *sequences, dropout, causal, state, _unused = arguments
        queries, keys = self._checked(query, key, value, *sequences, causal=causal)
        assert dropout == 0.0 and state.dtype == torch.uint64
        assert lse.dtype == torch.float32 and lse.is_contiguous() and lse.shape == (query.shape[1], len(query))
        assert gradient.shape == out.shape == query.shape

        def heads(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.transpose(0, 1).unflatten(0, (key.shape[1], -1))

        found = ReferenceAttention().backward(
            heads(gradient), heads(query), key.transpose(0, 1), value.transpose(0, 1),
            (heads(out), lse.unflatten(0, (key.shape[1], -1))), queries, keys, causal=causal, scale=scale,
        )  # fmt: skip
        return found[0].flatten(0, 1).transpose(0, 1), found[1].transpose(0, 1), found[2].transpose(0, 1)
