"""Digests of weights: the same value as ever, whatever the blocks, and remembered by content."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from saga_dist.models import weight_digest as module
from saga_dist.models.families import resolve_family
from saga_dist.models.weight_digest import checksum, digest_folder, hash_weights, weights_digest


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(7, 9, generator=generator).bfloat16(),
        "a": torch.randn(5, generator=generator),
        "view": torch.randn(64, generator=generator)[3:17],
        "turned": torch.randn(6, 4, generator=generator).T,
        "odd": torch.arange(11, dtype=torch.uint8),
        "none": torch.zeros(0),
    }


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(module, "digest_folder", lambda: tmp_path / "digests")
    return tmp_path / "digests"


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    module = torch.nn.Module()
    for name, tensor in weights.items():
        module.register_buffer(name, tensor)
    return weights_digest(module)


def by_hand(weights: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def test_the_digest_is_that_of_earlier_versions(weights: dict[str, torch.Tensor], tiny_checkpoint: Path) -> None:
    assert digest_of(weights) == hash_weights(weights) == by_hand(weights)
    backbone = resolve_family(tiny_checkpoint).load_backbone()
    assert backbone.digest() == by_hand(backbone.state_dict())


def test_a_second_call_reads_no_bytes(
    weights: dict[str, torch.Tensor], remembering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest_of(weights)
    assert first == by_hand(weights)
    assert [path.read_text() for path in remembering.iterdir()] == [first]
    monkeypatch.setattr(module, "hash_weights", None)
    assert digest_of({name: tensor.clone() for name, tensor in weights.items()}) == first


def changed(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    other = {key: tensor.clone() for key, tensor in weights.items()}
    match name:
        case "value":
            other["b"][3, 3] += 1
        case "last byte":
            other["odd"][-1] += 1
        case "two words swapped":
            flat = other["turned"].contiguous().flatten()
            other["turned"] = torch.cat([flat[2:4], flat[:2], flat[4:]]).reshape(4, 6)
        case "name":
            other["c"] = other.pop("b")
        case "shape":
            other["a"] = other["a"][None]
        case "dtype":
            other["odd"] = other["odd"].view(torch.int8)
    return other


@pytest.mark.parametrize("what", ["value", "last byte", "two words swapped", "name", "shape", "dtype"])
def test_every_change_has_a_digest_of_its_own(what: str, weights: dict[str, torch.Tensor], remembering: Path) -> None:
    other = changed(weights, what)
    assert checksum(other) != checksum(weights)
    assert digest_of(other) == by_hand(other) != digest_of(weights) == by_hand(weights)


def test_blocks_do_not_matter(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = checksum(weights)
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    assert checksum(weights) == expected


def test_a_folder_that_cannot_be_used_costs_time_only(weights: dict[str, torch.Tensor], remembering: Path) -> None:
    remembering.write_text("a file where the folder should be")
    assert digest_of(weights) == by_hand(weights)


@pytest.mark.parametrize("damage", [b"", b"0" * 63, b"0" * 64 + b"\n", b"G" * 64, b"\xff" * 64])
def test_a_damaged_entry_is_not_believed_and_is_replaced(
    damage: bytes, weights: dict[str, torch.Tensor], remembering: Path
) -> None:
    digest_of(weights)
    (entry,) = remembering.iterdir()
    entry.write_bytes(damage)
    assert digest_of(weights) == by_hand(weights)
    assert entry.read_text() == by_hand(weights)


def test_an_entry_of_another_user_is_not_believed(
    weights: dict[str, torch.Tensor], remembering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest_of(weights)
    (entry,) = remembering.iterdir()
    entry.write_text("0" * 64)
    monkeypatch.setattr(module.os, "getuid", lambda: entry.stat().st_uid + 1)
    assert digest_of(weights) == by_hand(weights)
    assert entry.read_text() == "0" * 64, "the folder is not ours either"


def test_workers_that_hash_the_same_weights_at_a_time_agree(
    weights: dict[str, torch.Tensor], remembering: Path
) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: digest_of(weights), range(64)))
    assert set(found) == {by_hand(weights)}
    assert [entry.read_text() for entry in remembering.iterdir()] == [by_hand(weights)], "no other file is left"


def test_small_weights_leave_nothing_on_the_node(
    weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "checksum", None)
    assert digest_of(weights) == by_hand(weights)
    assert digest_folder().name == "digests"
