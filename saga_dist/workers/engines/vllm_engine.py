"""Rollout engine on vLLM, with vLLM's engine core in this process; the code is the same on CPU and on GPU.

Three properties of vLLM 0.32 determine the design. After any exception inside the engine, the next valid request can
hang forever, so an engine that raised is never used again. vLLM has no time limit for a call, so the loop over ``step``
is in this file and checks the clock. On CPU, a seeded request whose prompt is prefilled in several chunks crashes the
engine (random generators cannot be rewound there), so chunked prefill is off and a step can hold a whole prompt.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.utils.processes import descendants
from saga_dist.utils.shared_memory import mapped_files, remove_unmapped
from saga_dist.workers.engines.process_state import process_state_kept
from saga_dist.workers.engines.validation import check_context_length
from saga_dist.workers.engines.vllm_arguments import EngineSize, cpu_arguments, gpu_arguments

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

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
SEED_MASK = (1 << 62) - 1
"""Mask for seeds: vLLM adds the index of a completion to the seed, and the sum must fit into an int64."""


class VllmEngine:
    """Samples completions with vLLM; implements ``protocols.Engine``.

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
            "seed": seed,
            "tensor_parallel_size": tensor_parallel_size,
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
        if self._llm is None or self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="vLLM")
        for record, sampling in zip(tokens, samplings, strict=True):
            check_context_length(
                record, sampling, num_text_tokens=self._num_text_tokens, max_model_len=self._max_model_len
            )
        deadline = time.monotonic() + deadline_s
        names: list[str] = []
        self.broken = "a call was interrupted"  # reset below, unless the call raises
        try:
            names += [self._add(record, sampling) for record, sampling in zip(tokens, samplings, strict=True)]
            outputs = self._run(names, deadline, deadline_s)
            results = [
                self._completions(outputs[name], record, sampling)
                for name, record, sampling in zip(names, tokens, samplings, strict=True)
            ]
        except DeadlineExceeded as error:
            self.broken = str(error)
            self._llm.abort_request(names)
            raise
        except EngineError as error:
            self.broken = str(error)
            raise
        except Exception as error:  # handled here: after any exception of vLLM the engine is not used again
            self.broken = _error_line(error)
            raise EngineError(self.broken, where="vLLM", fix="the worker starts a new engine") from error
        self.broken = ""
        self.num_cached_tokens = [outputs[name].num_cached_tokens or 0 for name in names]
        return results

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

    def _add(self, record: EncoderTokens, sampling: Sampling) -> str:
        """Adds one group as one request, so that its completions share prompt and payload; returns the request's id."""
        assert self._llm is not None
        name = f"{next(self._request_numbers)}"
        prompt = {
            "prompt_token_ids": self._engine_prompt_ids,
            "multi_modal_data": self._family.image_inputs(record),
            "multi_modal_uuids": {"image": content_ids(record)},
        }
        (rendered,) = self._llm.renderer.render_cmpl([prompt])
        self._llm.add_request(name, rendered, self._sampling_params(sampling))
        return name

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.num_completions if sampling.temperature > 0 else 1,  # vLLM refuses greedy groups
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed & SEED_MASK,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            logit_bias=self._logit_bias or None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _run(self, names: Sequence[str], deadline: float, deadline_s: float) -> dict[str, RequestOutput]:
        """Steps the engine until every request is finished; returns the outputs by request id.

        Raises:
            DeadlineExceeded: the clock passed ``deadline`` (of ``time.monotonic``).
            EngineError: vLLM has dropped a request.
        """
        assert self._llm is not None
        finished: dict[str, RequestOutput] = {}
        while len(finished) < len(names):
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"{len(names) - len(finished)} of {len(names)} groups unfinished after {deadline_s:g} s",
                    where="vLLM",
                    fix="raise rollout.deadline_s, or lower rollout.groups_per_lease or rollout.max_tokens",
                )
            if not self._llm.has_unfinished_requests():
                raise EngineError(f"{len(names) - len(finished)} requests vanished without an answer", where="vLLM")
            finished.update((output.request_id, output) for output in self._llm.step() if output.finished)
        return finished

    def _completions(self, output: RequestOutput, record: EncoderTokens, sampling: Sampling) -> Completions:
        """Returns the completions of one pair from the output of its request."""
        drawn = sorted(output.outputs, key=lambda completion: completion.index)
        if sampling.temperature <= 0:
            drawn = drawn * sampling.num_completions
        token_ids = tuple(tuple(completion.token_ids) for completion in drawn)
        return Completions(
            pair_id=record.pair_id,
            token_ids=token_ids,
            texts=tuple(self._tokenizer.decode(list(ids), skip_special_tokens=True) for ids in token_ids),
            log_probs=tuple(_sampled_log_probs(completion) for completion in drawn),
            finish_reasons=tuple(str(completion.finish_reason) for completion in drawn),
            sampling=sampling,
            encoder_version=record.encoder_version,
        )


def content_ids(record: EncoderTokens) -> list[str]:
    """Returns one id per image, a hash of its tokens and grid with the encoder version.

    vLLM uses the id as the cache key of the image and does not compare the tokens themselves.
    """
    names = []
    for values_NW, grid in zip(record.values_NW.split(record.lengths), record.grids, strict=True):
        digest = hashlib.blake2b(values_NW.contiguous().view(torch.uint8).cpu().numpy(), digest_size=16)
        digest.update(repr((tuple(values_NW.shape), str(values_NW.dtype), tuple(grid))).encode())
        names.append(f"{digest.hexdigest()}-v{record.encoder_version}")
    return names


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


def _sampled_log_probs(completion: CompletionOutput) -> np.ndarray:
    """Returns the log-probabilities of a completion's sampled tokens, float32 [T].

    Raises:
        EngineError: one is missing or not finite.
    """
    flat = completion.logprobs  # at each position the sampled token comes first
    if flat is None or len(flat.start_indices) != len(completion.token_ids):
        raise EngineError("vLLM returned no log-probability for some token", where="vLLM")
    log_probs_T = np.array([flat.logprobs[start] for start in flat.start_indices], dtype=np.float32)
    if not np.isfinite(log_probs_T).all():
        raise EngineError("log-probabilities are NaN or infinite: the model overflows on these tokens", where="vLLM")
    return log_probs_T


def _error_line(error: BaseException) -> str:
    """Returns type and message of an error in one line of at most ``MAX_ERROR_LENGTH`` characters."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= MAX_ERROR_LENGTH else line[:MAX_ERROR_LENGTH] + "…"
