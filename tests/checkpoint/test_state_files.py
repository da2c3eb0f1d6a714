"""Tensors and optimizer state come back to the bit, and damage is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saga_dist.checkpoint.state_files import load_optimizer, load_tensors, save_optimizer, save_tensors
from saga_dist.errors import CheckpointError

# ---------------------------------------------------------------------- tensors


def test_tensors_of_every_kind_come_back_exactly(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {
        "float32": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "bfloat16": torch.randn(3, 4).bfloat16(),
        "float64": torch.randn(2, dtype=torch.float64),
        "int64": torch.tensor(2**62),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 5).t(),
        "expanded": torch.ones(1).expand(4),
        "shared_a": shared,
        "shared_b": shared[3:9],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        got, want = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (loaded[name], tensor))
        assert torch.equal(got, want), name


def test_damaged_tensor_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match=r"t.safetensors: cannot read the tensors"):
        load_tensors(path)
    save_tensors(path, {"w": torch.ones(4)})
    whole = path.read_bytes()
    for size in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"t.safetensors: cannot read the tensors") as caught:
            load_tensors(path)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- optimizer


def make_optimizer(seed: int, widths: tuple[int, ...] = (3, 4)) -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(2, width, generator=generator)) for width in widths]
    groups = [
        {"params": parameters[:1], "lr": 1e-3, "initial_lr": 0.1 + 0.2},
        {"params": parameters[1:], "lr": 1e-2, "weight_decay": 0.0, "betas": (0.8, 0.95)},
    ]
    return parameters, torch.optim.AdamW(groups, weight_decay=0.01)


def train(parameters: list[torch.nn.Parameter], optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_two_steps_resume_two_equals_four(tmp_path: Path) -> None:
    straight, optimizer = make_optimizer(0)
    train(straight, optimizer, range(4))
    first, first_optimizer = make_optimizer(0)
    train(first, first_optimizer, range(2))
    save_optimizer(tmp_path, first_optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer.safetensors", "optimizer.json"}
    second, second_optimizer = make_optimizer(99)
    train(second, second_optimizer, range(7, 9))  # state that must be overwritten
    with torch.no_grad():
        for mine, theirs in zip(second, first, strict=True):
            mine.copy_(theirs)
    load_optimizer(tmp_path, second_optimizer)
    assert second_optimizer.state_dict()["param_groups"] == first_optimizer.state_dict()["param_groups"]
    train(second, second_optimizer, range(2, 4))
    for mine, theirs in zip(second, straight, strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimizer_that_never_stepped_can_be_saved(tmp_path: Path) -> None:
    _, fresh = make_optimizer(0)
    save_optimizer(tmp_path, fresh, "other")
    parameters, used = make_optimizer(0)
    train(parameters, used, range(1))
    load_optimizer(tmp_path, used, "other")
    assert used.state_dict()["state"] == {}


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    parameters, optimizer = make_optimizer(0)
    train(parameters, optimizer, range(1))
    save_optimizer(tmp_path, optimizer)
    with pytest.raises(CheckpointError, match=r"of parameter 1 has shape \(2, 4\); expected \(2, 5\), as in this run"):
        load_optimizer(tmp_path, make_optimizer(0, (3, 5))[1])
    with pytest.raises(CheckpointError, match=r"parameter groups of \[1, 1\] tensors; expected \[1, 2\]"):
        load_optimizer(tmp_path, make_optimizer(0, (3, 4, 5))[1])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"param_groups": []}', "\xff"])
def test_a_damaged_optimizer_file_is_one_line(tmp_path: Path, content: str) -> None:
    save_optimizer(tmp_path, make_optimizer(0)[1])
    (tmp_path / "optimizer.json").write_text(content, "latin-1")
    with pytest.raises(CheckpointError, match=r"optimizer.json: cannot read the optimizer state") as caught:
        load_optimizer(tmp_path, make_optimizer(0)[1])
    assert "\n" not in str(caught.value)
