"""Construction of the configured rollout engine, and the arguments of every engine factory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from saga_dist.config.registries import ENGINES
from saga_dist.errors import ConfigError, EngineError, SagaError
from saga_dist.models.families.base import Family
from saga_dist.protocols import Engine


@dataclass(frozen=True, slots=True)
class EngineContext:
    """The arguments of an engine factory (``rollout.engine``)."""

    family: Family
    """Family of the MLLM, bound to its checkpoint. ``files.name`` and ``files.revision`` locate the checkpoint,
    ``load_backbone`` loads its language model, ``image_inputs`` and ``engine_prompt_ids`` build a serving engine's
    request. The engine must never sample ``forbidden_token_ids``: a completion that has one cannot be replayed."""
    prompt_text: str
    """The whole prompt, with ``family.image_placeholder`` once per image; it ends with text."""
    dtype: torch.dtype
    """Dtype of the weights and of the encoder tokens: float32 or bfloat16."""
    device: torch.device
    """Device of the weights (``model.device``); an engine that chooses its own device may ignore it."""
    max_model_len: int
    """Largest length of prompt and completion together, in tokens, image tokens included."""
    max_num_seqs: int
    """Number of completions in the largest call; an engine with less memory may divide them."""
    gpu_memory_share: float
    """Share of its GPU's memory, in (0, 1], that the engine may use for weights and KV cache."""
    tensor_parallel_size: int
    """Number of this node's GPUs that the weights are sharded over; 1 for no sharding."""
    seed: int
    """Seed of the engine itself; completions depend on ``Sampling.seed`` alone."""
    log_probs: Literal["model", "sampling"] = "model"
    """Distribution of the reported log-probabilities: the model's (temperature 1, whole vocabulary), or the one that is
    sampled from (temperature, top-p, without forbidden tokens)."""
    batch_invariant: bool = False
    """True when a completion must not depend on what else is in the engine's batch, bit for bit."""


EngineFactory = Callable[[EngineContext], Engine]
"""Returns an engine that is ready to generate.

The worker calls it at its start, and again after every failure of an engine. ``saga_dist.testing.check_engine`` checks
the returned engine.
"""


def make_engine(name: str, context: EngineContext) -> Engine:
    """Returns a new engine.

    Args:
        name: built-in name, or import path of an ``EngineFactory``.
        context: arguments of the factory.

    Raises:
        ConfigError: there is no such factory, or it returned no engine.
        EngineError: the engine did not start; it may start on another worker, or later.
    """
    factory = load_engine_factory(name)
    try:
        engine = factory(context)
    except SagaError:
        raise
    except Exception as error:  # handled here: a user's factory may raise any error
        if name in ENGINES.builtin:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EngineError(f"{name!r} did not start: {reason}", where=ENGINES.key) from error
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"{name!r} returned a {type(engine).__name__}",
            where=ENGINES.key,
            expected="an engine with the methods generate and close",
        )
    return engine


def load_engine_factory(name: str) -> EngineFactory:
    """Returns the factory of an engine, without starting one.

    Args:
        name: built-in name, or import path of an ``EngineFactory``.

    Raises:
        ConfigError: there is no such factory.
    """
    factory: EngineFactory = ENGINES.load_callable(name, "context")
    return factory
