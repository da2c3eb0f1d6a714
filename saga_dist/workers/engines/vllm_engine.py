"""Rollout engine on vLLM, with vLLM's engine core in this process; the code is the same on CPU and on GPU.

Three properties of vLLM 0.32 determine the design. After any exception inside the engine, the next valid request can
hang forever, so an engine that raised is never used again. vLLM has no time limit for a call, so the loop over ``step``
is in this file and checks the clock. On CPU, a seeded request whose prompt is prefilled in several chunks crashes the
engine (random generators cannot be rewound there), so chunked prefill is off and a step can hold a whole prompt.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.utils.processes import descendants
from saga_dist.utils.shared_memory import mapped_files, remove_unmapped
from saga_dist.workers.engines.deadlines import groups_too_late
from saga_dist.workers.engines.process_state import process_state_kept
from saga_dist.workers.engines.validation import check_context_length
from saga_dist.workers.engines.vllm_arguments import EngineSize, cpu_arguments, gpu_arguments
from saga_dist.workers.engines.vllm_requests import completions_of, content_ids, sampling_params

if TYPE_CHECKING:
    from vllm import LLMEngine
    from vllm.outputs import RequestOutput

    from saga_dist.models.families.base import Family
    from saga_dist.workers.engines.factory import EngineContext

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a separate engine process could outlive the worker
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Environment variables that are set before vLLM is imported, unless the user has set them."""

MAX_ERROR_LENGTH = 600
"""Largest number of characters of an error of vLLM that is passed on."""
ENGINE_SEED_MASK = (1 << 32) - 1
"""Mask for the seed of the engine itself, which numpy's global generator takes and nothing is sampled with."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One group in vLLM's batch."""

    internal_id: str
    """vLLM's own id of the request."""
    record: EncoderTokens
    """Encoder tokens of the pair."""
    sampling: Sampling
    """Sampling parameters."""


class VllmEngine:
    """Samples completions with vLLM; implements ``protocols.StreamingEngine``.

    Args:
        family: family of the MLLM, bound to its checkpoint. Its ``forbidden_token_ids`` are never sampled, because a
            completion that has one cannot be replayed.
        prompt_text: the whole prompt, with the family's placeholder once per image.
        dtype: dtype of weights and KV cache, ``float32`` or ``bfloat16``.
        max_model_len: context length, in tokens.
        max_num_seqs: largest number of completions that are generated at the same time.
        seed: seed of the engine itself; completions depend on ``Sampling.seed`` alone.
        gpu_memory_utilization: share of the GPU's memory for everything that the engine allocates, in (0, 1].
        cpu_kv_cache_bytes: size of the KV cache on CPU; None for the default of ``EngineSize``.
        tensor_parallel_size: number of shards of the weights; each shard has a process of its own, with one GPU of this
            machine (or some of its CPUs).
        log_probs: distribution of the reported log-probabilities (``EngineContext.log_probs``).
        batch_invariant: True to compute each completion with the same bits in every batch; GPUs only.
        load_format: vLLM's way to get the weights; ``auto`` reads the checkpoint, ``dummy`` makes random ones.

    Raises:
        EngineError: vLLM could not be started.
        ConfigError: the prompt has no image placeholder, the GPU's share has no room for the KV cache, or batch
            invariance is wanted on a CPU.
    """

    def __init__(
        self,
        *,
        family: Family,
        prompt_text: str,
        dtype: str = "bfloat16",
        max_model_len: int = 4096,
        max_num_seqs: int = 128,
        seed: int = 0,
        gpu_memory_utilization: float = 0.5,
        cpu_kv_cache_bytes: int | None = None,
        tensor_parallel_size: int = 1,
        log_probs: Literal["model", "sampling"] = "model",
        batch_invariant: bool = False,
        load_format: str = "auto",
    ) -> None:
        self.broken = ""
        """Reason why the engine cannot be used any more; empty while it can."""
        self.num_cached_tokens: list[int] = []
        """Number of tokens of each prompt of the last call that were found in the prefix cache."""
        self._llm: LLMEngine | None = None
        self._max_model_len = max_model_len
        self._family = family
        self._logit_bias = {token_id: float("-inf") for token_id in family.forbidden_token_ids}
        self._request_numbers = itertools.count()
        self._requests: dict[str, _Request] = {}
        """Unfinished requests by name, which is their number."""
        self._tokenizer = family.load_tokenizer()
        prompt_ids: list[int] = self._tokenizer.encode(prompt_text, add_special_tokens=False)
        num_images = prompt_text.count(family.image_placeholder)
        if not num_images:
            raise ConfigError(f"no {family.image_placeholder} in the prompt", where="vLLM", expected="one per image")
        self._engine_prompt_ids = family.engine_prompt_ids(prompt_ids)
        self._num_text_tokens = len(prompt_ids) - num_images
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if batch_invariant:
            _make_batch_invariant()
        arguments: dict[str, Any] = {
            "model": family.files.name,
            "revision": family.files.revision,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "seed": seed & ENGINE_SEED_MASK,
            "tensor_parallel_size": tensor_parallel_size,
            "load_format": load_format,
            # With an image limit of 0, vLLM would leave out the tower, and DeepStack with it. Profiling is skipped
            # because it would run the tower, which no request uses.
            "limit_mm_per_prompt": {"image": num_images, "video": 0},
            "enable_mm_embeds": True,
            "skip_mm_profiling": True,
            "mm_processor_cache_gb": 0,  # tokens differ with every encoder version, so a cache would have no hits
            "enable_prefix_caching": True,
            "logprobs_mode": "raw_logprobs" if log_probs == "model" else "processed_logprobs",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if tensor_parallel_size > 1:  # multiprocessing also within a Ray actor, where vLLM could use Ray
            arguments["distributed_executor_backend"] = "mp"
        try:
            size = EngineSize.of(family, dtype, context=max_model_len, sequences=max_num_seqs)
            self._llm = _start(arguments, size, gpu_memory_utilization, cpu_kv_cache_bytes)
        except ConfigError:
            self.close()
            raise
        except Exception as error:  # handled here: after any error of vLLM, the caller may retry elsewhere
            self.close()
            raise EngineError(f"vLLM did not start: {_error_line(error)}", where=family.files.name) from error

    @classmethod
    def from_context(cls, context: EngineContext) -> VllmEngine:
        """Returns the configured engine; vLLM chooses the device itself."""
        return cls(
            family=context.family,
            prompt_text=context.prompt_text,
            dtype=str(context.dtype).removeprefix("torch."),
            max_model_len=context.max_model_len,
            max_num_seqs=context.max_num_seqs,
            seed=context.seed,
            gpu_memory_utilization=context.gpu_memory_share,
            tensor_parallel_size=context.tensor_parallel_size,
            log_probs=context.log_probs,
            batch_invariant=context.batch_invariant,
        )

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order; the same tokens and sampling give the same completions.

        Args:
            tokens: encoder tokens of each pair, checked with ``validation.validate_tokens``.
            samplings: sampling parameters of each pair.
            deadline_s: longest time for the whole call, seconds; checked before every step of the engine.

        Raises:
            ConfigError: a prompt with its longest completion exceeds ``max_model_len``; the engine remains usable.
            DeadlineExceeded: the completions were not finished in time; the engine must be replaced.
            EngineError: vLLM raised, or the engine failed before; it must be replaced.
        """
        self._check_usable()
        for record, sampling in zip(tokens, samplings, strict=True):
            self._check_length(record, sampling)
        deadline = time.monotonic() + deadline_s
        with self._usable_unless_it_raises() as llm:
            names = [self._add(llm, record, sampling) for record, sampling in zip(tokens, samplings, strict=True)]
            finished: dict[str, tuple[_Request, RequestOutput]] = {}
            while len(finished) < len(names):
                if time.monotonic() >= deadline:
                    llm.abort_request(names)
                    raise groups_too_late(len(names) - len(finished), len(names), deadline_s, where="vLLM")
                finished.update((output.request_id, (request, output)) for request, output in self._step(llm))
            results = [self._completions(*finished[name]) for name in names]
        self.num_cached_tokens = [finished[name][1].num_cached_tokens or 0 for name in names]
        return results

    def add(self, tokens: EncoderTokens, sampling: Sampling) -> None:
        """Adds one group to the batch, see ``protocols.StreamingEngine``.

        Args:
            tokens: encoder tokens of the pair, checked with ``validation.validate_tokens``.
            sampling: sampling parameters.

        Raises:
            ConfigError: the prompt with its longest completion exceeds ``max_model_len``; nothing was added.
            EngineError: vLLM raised, or the engine failed before; it must be replaced.
        """
        self._check_usable()
        self._check_length(tokens, sampling)
        with self._usable_unless_it_raises() as llm:
            self._add(llm, tokens, sampling)

    def step(self) -> list[Completions]:
        """Generates one token of every completion in the batch; returns the groups that are finished.

        Raises:
            EngineError: vLLM raised, or the engine failed before; it must be replaced.
        """
        self._check_usable()
        with self._usable_unless_it_raises() as llm:
            return [self._completions(request, output) for request, output in self._step(llm)]

    def abort(self, pair_ids: Collection[str]) -> None:
        """Removes the groups of these pairs from the batch; ignores other ids.

        Raises:
            EngineError: vLLM raised, or the engine failed before; it must be replaced.
        """
        self._check_usable()
        aborted = [name for name, request in self._requests.items() if request.record.pair_id in pair_ids]
        with self._usable_unless_it_raises() as llm:
            # By vLLM's own id: by ours, it would keep the group's record for the rest of the run.
            llm.abort_request([self._requests.pop(name).internal_id for name in aborted], internal=True)

    def close(self) -> None:
        """Frees the engine's memory and vLLM's process-wide state, so that a new engine can start in this process."""
        self.broken = self.broken or "it was closed"
        llm, self._llm = self._llm, None
        shared = mapped_files(child.pid for child in descendants(os.getpid()))  # of the shards; one shard has none
        if llm is not None:
            llm.engine_core.shutdown()
            llm.renderer.shutdown()
            del llm
        gc.collect()
        remove_unmapped(shared)  # vLLM forgets the segments of collective operations on CPUs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check_usable(self) -> None:
        if self._llm is None or self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="vLLM")

    def _check_length(self, record: EncoderTokens, sampling: Sampling) -> None:
        """Raises ``ConfigError`` when the prompt with its longest completion exceeds ``max_model_len``."""
        check_context_length(record, sampling, num_text_tokens=self._num_text_tokens, max_model_len=self._max_model_len)

    @contextmanager
    def _usable_unless_it_raises(self) -> Iterator[LLMEngine]:
        """Yields vLLM's engine; after any exception in the block the engine is not used again.

        Raises:
            EngineError: vLLM raised.
        """
        assert self._llm is not None
        self.broken = "a call was interrupted"  # reset below, unless the block raises
        try:
            yield self._llm
        except (DeadlineExceeded, EngineError) as error:
            self.broken = str(error)
            raise
        except Exception as error:  # handled here: whatever vLLM raises, the caller may retry elsewhere
            self.broken = _error_line(error)
            raise EngineError(self.broken, where="vLLM", fix="the worker starts a new engine") from error
        self.broken = ""

    def _add(self, llm: LLMEngine, record: EncoderTokens, sampling: Sampling) -> str:
        """Adds one group as one request, so that its completions share prompt and payload; returns its name."""
        name = f"{next(self._request_numbers)}"
        prompt = {
            "prompt_token_ids": self._engine_prompt_ids,
            "multi_modal_data": self._family.image_inputs(record),
            "multi_modal_uuids": {"image": content_ids(record)},
        }
        (rendered,) = llm.renderer.render_cmpl([prompt])
        internal_id = llm.add_request(name, rendered, sampling_params(sampling, self._logit_bias))
        self._requests[name] = _Request(internal_id, record, sampling)
        return name

    def _step(self, llm: LLMEngine) -> list[tuple[_Request, RequestOutput]]:
        """Steps the engine once; returns the requests that are finished, with their outputs.

        Raises:
            EngineError: vLLM has dropped a request.
        """
        if self._requests and not llm.has_unfinished_requests():
            raise EngineError(f"{len(self._requests)} requests vanished without an answer", where="vLLM")
        finished = [output for output in llm.step() if output.finished]
        return [(self._requests.pop(output.request_id), output) for output in finished]

    def _completions(self, request: _Request, output: RequestOutput) -> Completions:
        return completions_of(output, request.record, request.sampling, self._tokenizer)


def _make_batch_invariant() -> None:
    """Makes vLLM choose kernels that do not depend on the batch; it reads the variable when it is imported.

    Raises:
        ConfigError: there is no GPU.
    """
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        del os.environ["VLLM_BATCH_INVARIANT"]
        raise ConfigError(
            "rollout.batch_invariant = true on a CPU", where="vLLM", expected="a GPU", fix="set it to false"
        )


def _start(
    arguments: dict[str, Any], size: EngineSize, gpu_memory_share: float, cpu_kv_cache_bytes: int | None
) -> LLMEngine:
    """Returns vLLM's engine with these arguments and those of the platform.

    Raises:
        ConfigError: the GPU's share has no room for the KV cache.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # By default vLLM compiles small helper functions with inductor, which needs a C++ compiler and takes seconds at
        # the first token.
        type(current_platform).simple_compile_backend = "eager"
        if arguments["tensor_parallel_size"] > 1:  # by default vLLM binds each shard to a NUMA node, or fails
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        arguments |= cpu_arguments(cpu_kv_cache_bytes or size.on_cpu(), arguments["max_model_len"])
    else:
        memory = current_platform.get_device_total_memory()
        arguments |= gpu_arguments(size, memory, gpu_memory_share, arguments["tensor_parallel_size"])
    from vllm import EngineArgs, LLMEngine

    # On an exception vLLM logs the whole batch with its tensors; the error itself is raised and reported anyway.
    logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)
    with process_state_kept():
        return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _error_line(error: BaseException) -> str:
    """Returns type and message of an error in one line of at most ``MAX_ERROR_LENGTH`` characters."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= MAX_ERROR_LENGTH else line[:MAX_ERROR_LENGTH] + "…"
