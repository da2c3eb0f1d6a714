"""The example metric loss: a loop over images and classes, its contract, and a training with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from saga_dist.config import load_run_config
from saga_dist.runtime.build import build_learner
from saga_dist.testing import check_metric_loss


def test_equals_a_loop(example: Callable[[str], ModuleType]) -> None:
    loss = example("own_metric_loss").CosFace(num_classes=3, embedding_dim=4, seed=1, margin=0.2, scale=8.0)
    generator = torch.Generator().manual_seed(2)
    embeddings_IE = torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1)
    labels = [0, 2, 2, 1, 0]
    total = 0.0
    for embedding_E, label in zip(embeddings_IE, labels, strict=True):
        cosines = [float(embedding_E @ proxy_E / proxy_E.norm()) for proxy_E in loss.proxies_CE.detach()]
        logits = [8.0 * (cosine - 0.2 * (c == label)) for c, cosine in enumerate(cosines)]
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    assert loss(embeddings_IE, torch.tensor(labels)).item() == pytest.approx(total / 5, rel=1e-5)


def test_the_contract(example: Callable[[str], ModuleType]) -> None:
    check_metric_loss(example("own_metric_loss").CosFace)
    check_metric_loss(example("own_metric_loss").CosFace, margin=0.0, scale=1.0)


@pytest.mark.integration
@pytest.mark.usefixtures("example")
def test_two_steps_of_training(dry_run_and_train: Callable[..., Path]) -> None:
    run = dry_run_and_train(
        "objective.metric_loss=own_metric_loss:CosFace", "objective.metric_params={margin = 0.2, scale = 16}"
    )
    config = load_run_config(run)
    learner = build_learner(config)
    proxies = learner.optimizer.param_groups[-1]
    assert (proxies["name"], [tuple(tensor.shape) for tensor in proxies["params"]]) == ("proxies", [(4, 16)])
    before_CE = learner.metric_loss.loss.proxies_CE.detach().clone()
    saved = load_file(run / "checkpoints" / "step_00000002" / "learner.safetensors")
    assert not torch.allclose(saved["metric_loss.loss.proxies_CE"], before_CE), "the proxies learned"
    learner.load(run / "checkpoints" / "step_00000002")
    assert torch.equal(learner.metric_loss.loss.proxies_CE, saved["metric_loss.loss.proxies_CE"])
    assert (learner.metric_loss.loss.margin, learner.metric_loss.loss.scale) == (0.2, 16)
