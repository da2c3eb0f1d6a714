"""Backends of packed attention: each against end-to-end autograd, and what the CUDA kernel is given, without one."""

from __future__ import annotations

import pytest
import torch
from gpu.recorded_flash import RecordedFlash
from gpu.reference_attention import ReferenceAttention

from saga_dist.models.families import attention_backends
from saga_dist.models.families.attention_backends import (
    AttentionBackend,
    CpuFlash,
    Segments,
    VarlenFlash,
    find_backend,
)
from saga_dist.models.families.packed_attention import PackedContext

HEADS, SHARED, WIDTH, SCALE = 2, 3, 16, 0.3
"""Key heads, query heads for each of them, and their width."""
LENGTHS = [(4, 1, 7), (5,), (1, 1), (2, 9, 1, 3)]
PREFIXES = [0, 1, 6]


def inputs(lengths: tuple[int, ...], prefix: int, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries, keys and values of the sequences, then keys and values of the prefix, as leaves of a graph."""
    generator = torch.Generator().manual_seed(sum(lengths) + prefix)
    shapes = [(1, HEADS * SHARED, sum(lengths), WIDTH)] + 2 * [(1, HEADS, sum(lengths), WIDTH)]
    shapes += 2 * [(1, HEADS, prefix, WIDTH)] if prefix else []
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def packed(backend: AttentionBackend, tensors: list[torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    query, key, value, *prefix = tensors
    context = PackedContext(((prefix[0], prefix[1]),) if prefix else None, lengths, backend)
    return context.attend(0, query, key, value, SCALE)


def end_to_end(tensors: list[torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    """The same attention as one softmax per sequence, [1, R, H, d], differentiated by autograd."""
    query, key, value, *prefix = (tensor[0] for tensor in tensors)
    outputs = []
    for own in Segments(lengths).spans:
        keys, values = key[:, own], value[:, own]
        if prefix:
            keys, values = torch.cat([prefix[0], keys], dim=1), torch.cat([prefix[1], values], dim=1)
        keys, values = (part.repeat_interleave(SHARED, dim=0) for part in (keys, values))
        length, total = own.stop - own.start, keys.shape[1]
        mask = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        scores = (query[:, own] @ keys.mT * SCALE).masked_fill(~mask, -torch.inf)
        outputs.append(scores.softmax(-1) @ values)
    return torch.cat(outputs, dim=1).transpose(0, 1)[None]


def gradients(output: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
    return list(torch.autograd.grad(output, tensors, towards))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("backend", [ReferenceAttention(), CpuFlash()], ids=["reference", "cpu"])
def test_gradients_are_those_of_end_to_end_autograd(
    backend: AttentionBackend, lengths: tuple[int, ...], prefix: int
) -> None:
    tensors = inputs(lengths, prefix)
    found, expected = packed(backend, tensors, lengths), end_to_end(tensors, lengths)
    assert error(found, expected) <= 1e-5
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        if other.norm() > 1e-4:  # a sequence of one token without a prefix has one weight, which is constant
            assert error(one, other) <= 1e-5


@pytest.mark.parametrize("backend", [ReferenceAttention(), CpuFlash()], ids=["reference", "cpu"])
def test_bfloat16_is_float32_up_to_rounding(backend: AttentionBackend) -> None:
    lengths = (4, 1, 7)
    rounded = inputs(lengths, 6, dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in rounded]
    found, expected = packed(backend, rounded, lengths), end_to_end(exact, lengths)
    assert found.dtype == torch.bfloat16
    assert error(found, expected) <= 0.01
    for one, other in zip(gradients(found, rounded), gradients(expected, exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert error(one, other) <= 0.02


# ---------------------------------------------------------------- the CUDA kernel, without a GPU


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RecordedFlash:
    recorder = RecordedFlash()
    monkeypatch.setattr(attention_backends, "_varlen_flash", recorder.forward)
    monkeypatch.setattr(attention_backends, "_varlen_flash_backward", recorder.backward)
    return recorder


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_cuda_kernel_is_given_what_makes_its_gradients_right(
    recorder: RecordedFlash, lengths: tuple[int, ...], prefix: int
) -> None:
    tensors = inputs(lengths, prefix)
    found, expected = packed(VarlenFlash(), tensors, lengths), end_to_end(tensors, lengths)
    assert error(found, expected) <= 1e-5
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert one.shape == other.shape
        if other.norm() > 1e-4:
            assert error(one, other) <= 1e-5
    heads = (HEADS * SHARED, HEADS)
    own = {"queries": lengths, "keys": lengths, "causal": True, "heads": heads}
    before = {"queries": (sum(lengths),), "keys": (prefix,), "causal": False, "heads": heads}
    assert recorder.calls == ([own, before, before, own] if prefix else [own, own])


def test_offsets_are_copied_to_a_device_once() -> None:
    segments = Segments((3, 1, 5))
    first = segments.offsets(torch.device("cpu"))
    assert first.tolist() == [0, 3, 4, 9]
    assert segments.offsets(torch.device("cpu")) is first
    assert segments.offsets(torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("prefix", [1, 700])
def test_shapes_dtypes_and_strides_of_the_real_operators_on_meta_tensors(prefix: int) -> None:
    """Qwen3-VL-8B: 32 heads on 8 key heads of 128, through torch's own shape functions, forward and backward."""
    lengths, rows = (700, 1, 1024), 1725
    like = {"dtype": torch.bfloat16, "device": "meta"}
    query = torch.empty(1, rows, 32, 128, **like).transpose(1, 2).requires_grad_()
    key, value = (torch.empty(1, rows, 8, 128, **like).transpose(1, 2).requires_grad_() for _ in range(2))
    past = tuple(torch.empty(1, 8, prefix, 128, **like).requires_grad_() for _ in range(2))
    tensors = [query, key, value, *past]
    out = packed(VarlenFlash(), tensors, lengths)
    assert (out.shape, out.dtype, out.is_contiguous()) == ((1, rows, 32, 128), torch.bfloat16, True)
    for tensor, gradient in zip(tensors, torch.autograd.grad(out, tensors, torch.empty_like(out)), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, torch.bfloat16)


def test_log_sum_exp_is_float32_of_heads_and_tokens_on_meta_tensors() -> None:
    query = torch.empty(8, 4, 5, 128, dtype=torch.bfloat16, device="meta")
    key = torch.empty(8, 5, 128, dtype=torch.bfloat16, device="meta")
    own = Segments((2, 3))
    out, lse = VarlenFlash().forward(query, key, key, own, own, causal=True, scale=1.0)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((8, 4, 5), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "compiled", "expected"),
    [
        (torch.bfloat16, 128, (9, 0), True, VarlenFlash),
        (torch.float16, 256, (8, 0), True, VarlenFlash),
        (torch.float32, 128, (9, 0), True, type(None)),
        (torch.bfloat16, 100, (9, 0), True, type(None)),
        (torch.bfloat16, 264, (9, 0), True, type(None)),
        (torch.bfloat16, 128, (7, 5), True, type(None)),
        (torch.bfloat16, 128, (9, 0), False, type(None)),
    ],
)
def test_the_kernel_is_chosen_where_it_runs(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    width: int,
    capability: tuple[int, int],
    compiled: bool,
    expected: type,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert isinstance(find_backend(torch.device("cuda", 0), dtype, width), expected)
    assert isinstance(find_backend(torch.device("cpu"), dtype, width), CpuFlash)
    assert find_backend(torch.device("meta"), dtype, width) is None


def test_without_the_operators_groups_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention_backends, "_varlen_flash", None)
    monkeypatch.setattr(attention_backends, "_cpu_flash_backward", None)
    assert find_backend(torch.device("cuda", 0), torch.bfloat16, 128) is None
    assert find_backend(torch.device("cpu"), torch.float32, 128) is None
