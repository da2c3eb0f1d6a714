"""Builds the parts of a run from its configuration; only this module calls their constructors.

The serial runtime calls these functions in its own process, and Ray actors call them in theirs.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from saga_dist.config import STANDINS, DataSection, RunConfig
from saga_dist.data.prompts import VOCABULARIES, PromptSpec, Vocabulary, load_vocabulary, render_prompt
from saga_dist.errors import ConfigError
from saga_dist.models.checkpoint_sizes import check_kl_layer
from saga_dist.runtime.devices import choose_kernels, replay_devices, resolve_device
from saga_dist.utils.rng import counter_seed
from saga_dist.utils.stages import stage

if TYPE_CHECKING:
    import torch

    from saga_dist.data.image_sets import Splits
    from saga_dist.models.families.base import Family, VisionTower
    from saga_dist.models.pooler import Pooler
    from saga_dist.protocols import Engine
    from saga_dist.workers.data_parallel import Ranks
    from saga_dist.workers.learner import Learner
    from saga_dist.workers.replay import ReplayWorker
    from saga_dist.workers.rollout import RolloutWorker

_LOG = logging.getLogger(__name__)


def set_threads(config: RunConfig) -> None:
    """Sets the number of torch threads of this process to ``runtime.threads``; 0 leaves it unchanged."""
    if config.runtime.threads:
        import torch

        torch.set_num_threads(config.runtime.threads)


def model_path(config: RunConfig) -> str:
    """Returns ``model.path``, with the name of a stand-in replaced by the folder of its weights."""
    if config.model.path not in STANDINS:
        return config.model.path
    from saga_dist.standin import checkpoint_path

    return str(checkpoint_path(STANDINS[config.model.path]))


def build_family(config: RunConfig) -> Family:
    """Returns the model family of the configured checkpoint."""
    from saga_dist.models.families import resolve_family

    return resolve_family(model_path(config), revision=config.model.revision, family=config.model.family)


def build_vocabulary(config: RunConfig) -> Vocabulary:
    """Returns the vocabulary of the prompt, built in or from a TOML file.

    Raises:
        ConfigError: there is no such vocabulary.
    """
    name = config.prompt.vocabulary
    if name not in VOCABULARIES and not name.endswith(".toml"):
        raise ConfigError(
            f"prompt.vocabulary = {name!r}", expected=f"one of {', '.join(VOCABULARIES)}, or a path ending in .toml"
        )
    return load_vocabulary(name)


def build_prompt(config: RunConfig) -> PromptSpec:
    """Returns the comparison prompt; its vocabulary is built in or a TOML file.

    Raises:
        ConfigError: there is no such vocabulary or template, or ``objective.lambda_kl`` > 0 with a template that
            describes no image.
    """
    spec = PromptSpec(build_vocabulary(config), config.prompt.variant, config.prompt.order)
    if config.objective.lambda_kl > 0 and not spec.describes_images:
        raise ConfigError(
            f'objective.lambda_kl > 0 with prompt.variant = "{spec.variant}": its answer describes no image, so L_KL '
            "is undefined",
            fix="set objective.lambda_kl = 0, or name key_a and key_b in its answer_keys",
        )
    return spec


def prompt_text(config: RunConfig, family: Family) -> str:
    """Returns the rendered prompt with the image placeholders and the chat format of the family."""
    return render_prompt(
        build_prompt(config),
        image_a=family.image_placeholder,
        image_b=family.image_placeholder,
        chat=family.chat_format,
    )


def build_splits(data: DataSection, *, seed: int) -> Splits:
    """Returns the training, validation and test images, whose classes are disjoint.

    The result is cached, so that learners of one process with the same data (the rows of a table) list or draw the
    images once.

    Args:
        data: the section of the data set.
        seed: seed of the choice of validation classes; the built-in birds use ``data.birds.seed`` instead.
    """
    return _splits_of(data, 0 if data.layout == "birds" else seed)


@lru_cache(maxsize=2)
def _splits_of(data: DataSection, seed: int) -> Splits:
    from saga_dist.data.layouts import load_splits
    from saga_dist.data.left_out import summary

    splits = load_splits(data, seed=seed)
    if splits.left_out:
        _LOG.warning("%s: %s (saga-dist data check says where)", data.root, summary(splits.left_out))
    return splits


def build_learner(config: RunConfig, ranks: Ranks | None = None) -> Learner:
    """Returns a learner with a new pooler, metric loss and optimizer.

    Args:
        config: the whole configuration.
        ranks: data-parallel ranks as seen from this process; None for a learner of one process.
    """
    import torch

    from saga_dist.models.pooler import Pooler

    set_threads(config)
    family = build_family(config)
    device = resolve_device(config.model.device)
    choose_kernels(device)
    stage("loading the vision tower of %s", config.model.path)
    tower = family.load_tower(dtype=torch.float32, device=device)
    if config.optimizer.gradient_checkpointing:
        tower.enable_gradient_checkpointing()
    stage("listing the images of %s", config.data.root or config.data.layout)
    splits = build_splits(config.data, seed=config.run.seed)
    pooler = Pooler(
        config.model.pooler,
        key=config.model.pooler_key,
        width=tower.layout.width,
        embedding_dim=config.model.embedding_dim,
        layer_norm=config.model.pooler_layer_norm,
        seed=counter_seed(config.run.seed, "pooler"),
    )
    return assemble_learner(config, tower, pooler.to(device), splits, ranks)


def assemble_learner(
    config: RunConfig, tower: VisionTower, pooler: Pooler, splits: Splits, ranks: Ranks | None = None
) -> Learner:
    """Returns a learner of a tower and a pooler on one device, with a new metric loss and optimizer.

    Args:
        config: the whole configuration.
        tower: vision tower with float32 weights, all of them trainable; ``model.train`` is applied to it.
        pooler: pooler of its tokens.
        splits: image sets of the run.
        ranks: data-parallel ranks as seen from this process; None for a learner of one process.
    """
    import torch

    from saga_dist.models.encoder import Encoder
    from saga_dist.models.trained_part import choose_trained
    from saga_dist.objectives.metric_losses import build_metric_loss
    from saga_dist.workers.data_parallel import ALONE
    from saga_dist.workers.learner import Learner

    choose_trained(tower, config.model, seed=counter_seed(config.run.seed, "lora"))
    encoder = Encoder(tower, pooler, image_size=config.data.image_size)
    metric_loss = build_metric_loss(
        config.objective.metric_loss,
        num_classes=len(splits.train.class_names),
        embedding_dim=config.model.embedding_dim,
        seed=counter_seed(config.run.seed, "proxies"),
        **config.objective.metric_params,
    )
    return Learner(
        encoder=encoder,
        metric_loss=metric_loss,
        splits=splits,
        data=config.data,
        objective=config.objective,
        optimizer=config.optimizer,
        num_steps=config.run.steps,
        autocast_dtype=torch.bfloat16 if config.model.dtype == "bfloat16" else None,
        ranks=ranks or ALONE,
    )


def build_rollout_worker(config: RunConfig) -> RolloutWorker:
    """Returns a rollout worker whose engine is running.

    Raises:
        ConfigError: the configured reward cannot be imported in this process.
    """
    from saga_dist.objectives.reward_fn import load_reward
    from saga_dist.workers.rollout import RolloutWorker

    set_threads(config)
    reward = load_reward(config.objective.reward)  # before the engine, which takes minutes to start
    family = build_family(config)
    return RolloutWorker(
        lambda: build_engine(config, family),
        family=family,
        prompt=build_prompt(config),
        reward=reward,
        dtype=torch_dtype(config),
        deadline_s=config.rollout.deadline_s,
        advantage_epsilon=config.objective.advantage_epsilon,
    )


def build_engine(config: RunConfig, family: Family) -> Engine:
    """Returns the configured rollout engine, ready to generate."""
    from saga_dist.workers.engines.factory import EngineContext, make_engine

    rollout = config.rollout
    context = EngineContext(
        family=family,
        prompt_text=prompt_text(config, family),
        dtype=torch_dtype(config),
        device=resolve_device(config.model.device),
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_sequences,
        gpu_memory_share=rollout.gpu_memory_utilization,
        tensor_parallel_size=rollout.tensor_parallel_size,
        seed=config.run.seed,
        log_probs=config.objective.policy,
        batch_invariant=rollout.batch_invariant,
    )
    stage("starting the engine %s", rollout.engine)
    return make_engine(rollout.engine, context)


def build_replay_worker(config: RunConfig) -> ReplayWorker:
    """Returns a replay worker with the frozen backbone, on one device or with its layers on several.

    Raises:
        ModelError: ``objective.kl_layer`` is not a layer of this model.
        ConfigError: the devices are not available.
    """
    from saga_dist.models.device_map import distribute_layers
    from saga_dist.workers.replay import ReplayWorker

    set_threads(config)
    family = build_family(config)
    devices = replay_devices(config)
    choose_kernels(devices[0])
    stage("loading the language model of %s", config.model.path)
    if len(devices) == 1:
        backbone = family.load_backbone(dtype=torch_dtype(config), device=devices[0])
    else:
        backbone = family.load_backbone(dtype=torch_dtype(config), device="cpu")
        distribute_layers(backbone, devices)
    check_kl_layer(config.objective.kl_layer, backbone.num_layers, where=model_path(config))
    return ReplayWorker(
        backbone,
        family=family,
        prompt_text=prompt_text(config, family),
        kl_layer=config.objective.kl_layer,
        verdict_key=build_prompt(config).verdict_key,
        policy=config.objective.policy,
        completions_per_chunk=config.replay.completions_per_chunk,
        tokens_per_chunk=config.replay.tokens_per_chunk,
        logits_chunk=config.replay.logits_chunk,
    )


def torch_dtype(config: RunConfig) -> torch.dtype:
    """Returns the dtype of the frozen weights and of the encoder tokens that are sent to workers."""
    import torch

    return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
