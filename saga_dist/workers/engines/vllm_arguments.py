"""Arguments of vLLM that depend on the platform, above all the size of its KV cache, which is computed.

vLLM can measure what is free instead. On a card that learner or replay share, the measurement charges to vLLM whatever
the neighbour allocates meanwhile: the cache then has another size at every start, and the engine may not start at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saga_dist.errors import ConfigError
from saga_dist.models.families.base import Family

CPU_LIMIT = 4 << 30
"""Largest default size of the KV cache on CPU, bytes."""
SMALLEST = 64 << 20
"""Smallest size of the KV cache, bytes."""
GPU_WORK_BYTES = 3 << 30
"""GPU memory of vLLM besides weights and KV cache: CUDA context, activations of a prefill, CUDA graphs. Assumed."""
CPU_BLOCK_SIZE = 32
"""Tokens per block of the KV cache on CPU: the smallest block that CPU attention accepts, so that the completions of a
pair share as many full blocks of the prompt as possible."""
GPU_BATCHED_TOKENS = 8192
"""Most tokens of one engine step on a GPU: about eleven prompts of 700 tokens. vLLM's default of 2,048 would divide the
prefill of a lease into many steps."""
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by the dtype of weights and cache."""


@dataclass(frozen=True, slots=True)
class EngineSize:
    """Sizes of a model and of its largest call, from which the memory of an engine is computed."""

    weights: int
    """Bytes of all weights, tower included."""
    token: int
    """Bytes of the keys and values of one token in all layers."""
    context: int
    """Largest number of tokens of one sequence."""
    sequences: int
    """Largest number of sequences at the same time."""

    @classmethod
    def of(cls, family: Family, dtype: str, *, context: int, sequences: int) -> EngineSize:
        """Returns the sizes of a checkpoint's model; only the headers of its weight files are read.

        Args:
            family: family bound to the checkpoint.
            dtype: dtype of weights and cache.
            context: largest number of tokens of one sequence.
            sequences: largest number of sequences at the same time.
        """
        value = VALUE_BYTES[dtype]
        return cls(family.files.num_parameters() * value, token_bytes(family.config, value), context, sequences)

    @property
    def wanted(self) -> int:
        """Bytes of the KV cache with which all sequences can have their full length."""
        return max(self.sequences * self.context * self.token, SMALLEST)

    def on_cpu(self) -> int:
        """Returns the default bytes of the KV cache on a CPU."""
        return min(self.wanted, CPU_LIMIT)

    def on_gpu(self, *, memory: int, share: float, shards: int) -> int:
        """Returns the bytes of the KV cache on each GPU: what is wanted, or what its share of the memory has room for.

        Args:
            memory: bytes of a GPU.
            share: share of it that the engine may use, in (0, 1].
            shards: GPUs that weights and cache are divided over.

        Raises:
            ConfigError: the share has no room for one sequence of full length.
        """
        room = int(share * memory) - self.gpu_bytes(0, shards)
        needed = -(-self.context * self.token // shards)
        if room < needed:
            raise ConfigError(
                f"rollout.gpu_memory_utilization = {share:g} of a GPU of {_size(memory)} leaves {_size(max(room, 0))} "
                f"for the KV cache beside {_size(self.gpu_bytes(0, shards))} of weights and working memory",
                where="vLLM",
                expected=f"at least {_size(needed)}, one sequence of rollout.max_model_len = {self.context} tokens",
                fix="raise it, use a larger GPU, or shard with rollout.tensor_parallel_size",
            )
        return min(room, -(-self.wanted // shards))

    def gpu_bytes(self, cache: int, shards: int) -> int:
        """Returns the bytes that the engine takes of each GPU with a KV cache of ``cache`` bytes."""
        return -(-self.weights // shards) + GPU_WORK_BYTES + cache


def cpu_arguments(kv_cache_bytes: int, max_model_len: int) -> dict[str, Any]:
    """Returns the arguments of an engine on a CPU."""
    return {
        "enforce_eager": True,
        "block_size": CPU_BLOCK_SIZE,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, max_model_len),
    }


def gpu_arguments(size: EngineSize, memory: int, share: float, shards: int) -> dict[str, Any]:
    """Returns the arguments of an engine on GPUs of ``memory`` bytes.

    vLLM takes the size of the cache as given, but does not start while less than ``gpu_memory_utilization`` of the GPU
    is free. So this is set to what the engine needs, which may be less than its share.

    Raises:
        ConfigError: the share has no room for the KV cache.
    """
    cache = size.on_gpu(memory=memory, share=share, shards=shards)
    return {
        "kv_cache_memory_bytes": cache,
        "gpu_memory_utilization": min(share, size.gpu_bytes(cache, shards) / memory),
        "max_num_batched_tokens": GPU_BATCHED_TOKENS,
    }


def token_bytes(config: dict[str, Any], value: int) -> int:
    """Returns the bytes of the keys and values of one token in all layers.

    Args:
        config: content of the checkpoint's config.json.
        value: bytes of a number.
    """
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    return 2 * text["num_hidden_layers"] * (text.get("num_key_value_heads") or heads) * head_dim * value


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
