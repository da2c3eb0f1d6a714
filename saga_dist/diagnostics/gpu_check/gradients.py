"""Section ``gradients``: replay and the learner's backward pass equal end-to-end autograd of the Hugging Face model.

It has a tiny model of its own, in float32 on the device, for every size. ``make test-gpu`` checks far more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from saga_dist.bench.inputs import BenchInputs, load_inputs
from saga_dist.bench.random_groups import random_task
from saga_dist.errors import TrainingError
from saga_dist.models.families.base import PixelBatch
from saga_dist.runtime.devices import resolve_device
from saga_dist.standin.random_families import write_random_family
from saga_dist.types import EncoderTokens, ReplayTask
from saga_dist.workers.replay import ReplayWorker

TOLERANCE = 1e-5
"""Largest relative error, by the Euclidean norm."""
LENGTHS = (4, 9, 1, 7)
"""Tokens of the completions."""
FEW_IMAGES = (
    "data.birds.train_images_per_class=4",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
)
"""Overrides of the demo, which draws far more images."""


def measure(_: str) -> dict[str, Any]:
    """Returns the relative errors of token gradients and of the tower's gradients.

    Raises:
        TrainingError: one is larger than ``TOLERANCE``.
    """
    device = resolve_device("auto")
    torch.backends.cudnn.allow_tf32 = False  # the reference embeds patches by a convolution, in float32
    with tempfile.TemporaryDirectory(prefix="saga-check-gpu-") as folder:
        inputs = load_inputs(write_random_family(Path(folder), "qwen3_vl"), 2, FEW_IMAGES)
        tower = inputs.tower.to(device)
        pixels: PixelBatch = inputs.pixels[0]
        values_NW = tower(pixels)
        record = inputs.encode()[0]
        vocabulary = inputs.family.config["text_config"]["vocab_size"]
        task = random_task(LENGTHS, vocabulary, record)
        found = _replayed(inputs, task, record, device)
        values_NW.backward(found.to(device))
        expected, expected_tower = _end_to_end(inputs, task, device)
    own_tower = {name.removeprefix("model."): gradient_of(weight) for name, weight in tower.named_parameters()}
    errors = {
        "token_gradient_error": relative_error([found.to(device)], [expected]),
        "tower_gradient_error": relative_error([own_tower[name] for name in expected_tower], expected_tower.values()),
    }
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise TrainingError(
                f"{name} = {error:.2g}", where=f"float32 on {device}", expected=f"at most {TOLERANCE:g}"
            )
    return {**errors, "tolerance": TOLERANCE, "more": "make test-gpu (pytest -m gpu)"}


def _replayed(inputs: BenchInputs, task: ReplayTask, record: EncoderTokens, device: torch.device) -> torch.Tensor:
    """Returns dL_GRPO/d(tokens), float32 [N, W], by replay in several chunks."""
    worker = ReplayWorker(
        inputs.family.load_backbone(device=device),
        family=inputs.family,
        prompt_text=inputs.prompt_text,
        kl_layer=0,
        completions_per_chunk=3,
        logits_chunk=5,
    )
    return worker.replay(task, record).values_NW


def _end_to_end(
    inputs: BenchInputs, task: ReplayTask, device: torch.device
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns dL_GRPO/d(tokens), [N, W], and the tower's gradients, by autograd of the unmodified model on pixels."""
    reference = inputs.reference().to(device)
    tokens: list[list[torch.Tensor]] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        levels = [output.pooler_output, *output.deepstack_features]
        for level in levels:
            level.retain_grad()
        tokens.append(levels)

    hook = reference.model.visual.register_forward_hook(keep)
    group, num_prompt = task.group, len(inputs.prompt_ids())
    for ids, advantage in zip(group.completions.token_ids, group.advantages_G.tolist(), strict=True):
        model_inputs = {name: tensor.to(device) for name, tensor in inputs.model_inputs([0], [ids]).items()}
        logits_TV = reference(**model_inputs).logits[0, num_prompt - 1 : -1].float()
        log_prob = -F.cross_entropy(logits_TV, torch.tensor(ids, device=device), reduction="sum")
        (-advantage * log_prob / task.num_tokens_total).backward()
    hook.remove()
    of_completions = [torch.cat([gradient_of(level) for level in levels], dim=1) for levels in tokens]
    tower = {name: gradient_of(weight) for name, weight in reference.model.visual.named_parameters()}
    return torch.stack(of_completions).sum(0), tower


def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a tensor; zeros where none arrived."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def relative_error(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Returns the relative error of several tensors together, by the Euclidean norm."""
    own, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, expected))
    return ((own - other).norm() / other.norm()).item()
