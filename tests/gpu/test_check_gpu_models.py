"""What the sections of check-gpu share: measuring of time and memory, and models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.pretend_cuda import CPU, CUDA

from saga_dist.diagnostics.gpu_check import measuring
from saga_dist.diagnostics.gpu_check.random_model import DTYPE, fill_randomly, random_model, write_model_folder
from saga_dist.diagnostics.gpu_check.sizes import SIZES
from saga_dist.errors import ConfigError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.checkpoint_family import CheckpointFamily

pytestmark = pytest.mark.usefixtures("auto_device")

TINY = SIZES["tiny"]


# ---------------------------------------------------------------- time and memory


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch has counters of its own")
def test_memory_of_a_gpu_is_what_torch_counts(cuda_counters: dict[str, Any]) -> None:
    found = measuring.measured(CUDA, lambda: "done")
    assert (found.result, found.before_bytes, found.peak_bytes, found.reserved_bytes) == ("done", 3, 10, 16)
    assert found.working_bytes == 7
    assert found.seconds >= 0
    assert cuda_counters == {"synchronize": 2, "reset_peak_memory_stats": 1}
    measuring.measured(CPU, lambda: None)
    assert cuda_counters == {"synchronize": 2, "reset_peak_memory_stats": 1}


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    found = measuring.measured(CPU, lambda: torch.ones(40 << 18).sum().item())
    assert found.result == 40 << 18
    assert 39 << 20 < found.working_bytes < 80 << 20
    assert found.peak_bytes == found.reserved_bytes > found.before_bytes > 0
    assert found.seconds > 0


# ---------------------------------------------------------------- random models


@pytest.mark.parametrize(("name", "parameters"), [("2b", 2_127_532_032), ("4b", 4_437_815_808), ("8b", 8_767_123_696)])
def test_released_sizes_have_their_number_of_weights(name: str, parameters: int, tmp_path: Path) -> None:
    write_model_folder(tmp_path, SIZES[name])
    family = resolve_family(tmp_path)
    assert isinstance(family, CheckpointFamily)
    parts = (family.empty_tower(), family.empty_backbone(dtype=DTYPE))
    assert sum(weight.numel() for part in parts for weight in part.parameters()) == parameters
    assert family.config["vision_config"]["patch_size"] * family.layout.merge_size == 32
    assert SIZES[name].image_size % 32 == 0
    tokenizer = family.load_tokenizer()
    assert tokenizer.encode(family.image_placeholder, add_special_tokens=False)[1] == family.config["image_token_id"]


def test_weights_keep_the_size_of_what_they_multiply() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.LayerNorm(300), torch.nn.Conv2d(3, 64, 5))
    state = torch.random.get_rng_state()
    fill_randomly(module, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module[0].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert module[2].weight.std().item() == pytest.approx(75**-0.5, rel=0.05)
    assert (module[0].bias == 0).all() and (module[1].weight == 1).all() and (module[1].bias == 0).all()
    again = fill_randomly(torch.nn.Linear(400, 300), seed=1)
    assert torch.equal(again.weight, module[0].weight)


def test_a_model_has_its_prompt_and_its_group(device: torch.device) -> None:
    with random_model("tiny") as model:
        assert model.device == device
        worker = model.replay_worker(model.backbone())
        prompt, values_NW = worker._prompt.load(model.tokens())
        assert len(prompt.token_ids_S) == TINY.prompt_tokens == model.token_counts.prompt
        assert prompt.images[0].start == model.token_counts.common_prefix
        assert values_NW.device == device
        group = model.task(model.tokens()).group
        assert tuple(map(len, group.completions.token_ids)) == TINY.lengths
        assert model.token_counts.completion == np.mean(TINY.lengths)


def test_a_released_size_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Qwen3-VL-8B-Instruct on a CPU; expected a GPU"), random_model("8b"):
        pass
