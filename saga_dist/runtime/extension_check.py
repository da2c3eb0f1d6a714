"""Checks of the user's own objects before a run: each object is imported and tried on a small input.

Nothing is imported for built-in names, nor for objects that the run would not use.
"""

from __future__ import annotations

from saga_dist.config import RunConfig
from saga_dist.config.registries import METRIC_LOSSES
from saga_dist.data.prompts import PromptSpec, render_prompt
from saga_dist.errors import ConfigError
from saga_dist.objectives.reward_fn import load_reward
from saga_dist.runtime.build import build_prompt
from saga_dist.utils.registry import is_import_path

_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def check_extensions(config: RunConfig) -> None:
    """Tries the prompt template on the vocabulary, the reward on an empty text, and the metric loss on four embeddings.

    Engine factory and model family are imported and their form is checked; no engine is started and no model is loaded.

    Raises:
        ConfigError: there is no such vocabulary; or an object cannot be imported, raises, or returns a wrong result.
    """
    if config.needs_mllm:
        prompt = build_prompt(config)
        render_prompt(prompt, image_a=_PLACEHOLDER, image_b=_PLACEHOLDER)
        if is_import_path(config.objective.reward):
            _try_reward(config.objective.reward, prompt)
    if is_import_path(config.objective.metric_loss):
        _try_metric_loss(config)
    if is_import_path(config.rollout.engine):
        from saga_dist.workers.engines.factory import load_engine_factory

        load_engine_factory(config.rollout.engine)
    if config.model.own_family:
        from saga_dist.models.families import load_family_class

        load_family_class(config.model.own_family)


def _try_reward(name: str, prompt: PromptSpec) -> None:
    from saga_dist.types import ImagePair

    reward = load_reward(name)
    for label_b in (0, 1):
        reward("", ImagePair("dry-run", 0, 1, 0, label_b), prompt)


def _try_metric_loss(config: RunConfig) -> None:
    import torch

    from saga_dist.objectives.metric_losses import build_metric_loss

    name, dim = config.objective.metric_loss, config.model.embedding_dim
    loss = build_metric_loss(name, num_classes=2, embedding_dim=dim, seed=0, **config.objective.metric_params)
    random_4E = torch.randn(4, dim, generator=torch.Generator().manual_seed(0))
    embeddings_4E = torch.nn.functional.normalize(random_4E, dim=-1).requires_grad_()
    with METRIC_LOSSES.calling(name):
        value = loss(embeddings_4E, torch.tensor([0, 0, 1, 1]))
        value.backward()
    if embeddings_4E.grad is None or not bool(torch.isfinite(value) & torch.isfinite(embeddings_4E.grad).all()):
        raise ConfigError(
            f"{name!r} gave {value.item():g} on four random images, with "
            + ("no gradient" if embeddings_4E.grad is None else "a gradient that is not finite"),
            where=METRIC_LOSSES.key,
            expected="a finite loss with a finite gradient at the embeddings",
            fix="try it with saga_dist.testing.check_metric_loss",
        )
