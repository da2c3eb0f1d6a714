"""Making the configured rollout engine: the arguments that every engine's factory gets, and the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from saga_dist.config.registries import ENGINES
from saga_dist.errors import ConfigError, EngineError, SagaError
from saga_dist.models.families.base import Family
from saga_dist.protocols import Engine


@dataclass(frozen=True, slots=True)
class EngineContext:
    """The arguments of an engine factory (``rollout.engine``)."""

    family: Family
    """The MLLM, bound to its checkpoint: ``files.name`` and ``files.revision`` say where it is, ``load_backbone`` loads
    its language model, ``image_inputs`` and ``engine_prompt_ids`` make a serving engine's request. Its
    ``forbidden_token_ids`` must never be sampled: a completion that holds one cannot be replayed."""
    prompt_text: str
    """The whole prompt, with ``family.image_placeholder`` once per image; ends with text."""
    dtype: torch.dtype
    """Dtype of weights and of the encoder tokens that arrive: float32 or bfloat16."""
    device: torch.device
    """Device of the weights (``model.device``); an engine that places itself may ignore it."""
    max_model_len: int
    """Longest prompt and completion together, tokens, image tokens included."""
    max_num_seqs: int
    """Completions that the largest call asks for; an engine with less memory may generate them in turns."""
    gpu_memory_share: float
    """Share of its GPU's memory, in (0, 1], that the engine may use for weights and KV cache."""
    tensor_parallel_size: int
    """GPUs of this node that the weights are sharded over; 1: none."""
    seed: int
    """Seed of the engine itself; the randomness of completions comes from ``Sampling.seed`` alone."""


EngineFactory = Callable[[EngineContext], Engine]
"""Returns an engine that is ready to generate.

It is called once when the worker starts and again after every failure of an engine. ``saga_dist.testing.check_engine``
checks what it returns.
"""


def make_engine(name: str, context: EngineContext) -> Engine:
    """Returns a new engine.

    Args:
        name: built-in name, or import path of an ``EngineFactory``.
        context: arguments of the factory.

    Raises:
        ConfigError: no such factory, or it returns no engine.
        EngineError: the engine did not start; it may elsewhere, or later.
    """
    factory = load_engine_factory(name)
    try:
        engine = factory(context)
    except SagaError:
        raise
    except Exception as error:  # decided here: the start of an engine may fail for any reason of its own
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
    """Returns the factory of an engine; no engine is started.

    Raises:
        ConfigError: no such factory.
    """
    factory: EngineFactory = ENGINES.load_callable(name, "context")
    return factory
