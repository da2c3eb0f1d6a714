"""Requests to vLLM and what it returns: one request per group, whose completions share prompt and payload."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saga_dist.errors import EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

SEED_MASK = (1 << 62) - 1
"""Mask for seeds: vLLM adds the index of a completion to the seed, and the sum must fit into an int64."""


def sampling_params(sampling: Sampling, logit_bias: Mapping[int, float]) -> SamplingParams:
    """Returns vLLM's sampling parameters of one group.

    Args:
        sampling: sampling parameters of the group.
        logit_bias: added to the logits, by token id; -inf for tokens that are never sampled.
    """
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
        logit_bias=dict(logit_bias) or None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completions_of(output: RequestOutput, record: EncoderTokens, sampling: Sampling, tokenizer: Any) -> Completions:
    """Returns the completions of one pair from the output of its request.

    Args:
        output: output of the finished request.
        record: encoder tokens of the pair.
        sampling: sampling parameters of the group.
        tokenizer: decodes the token ids.

    Raises:
        EngineError: a log-probability is missing or not finite.
    """
    drawn = sorted(output.outputs, key=lambda completion: completion.index)
    if sampling.temperature <= 0:
        drawn = drawn * sampling.num_completions
    token_ids = tuple(tuple(completion.token_ids) for completion in drawn)
    return Completions(
        pair_id=record.pair_id,
        token_ids=token_ids,
        texts=tuple(tokenizer.decode(list(ids), skip_special_tokens=True) for ids in token_ids),
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
