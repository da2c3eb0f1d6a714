"""Rollout engine without vLLM: a batched sampling loop over the frozen backbone.

Replay uses the same backbone, so that the log-probabilities of engine and replay differ by rounding only. It needs no
further package, and it is the faster engine for small models without a GPU (docs/benches.md), where vLLM's overhead
exceeds the model's own computation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from saga_dist.errors import DeadlineExceeded, EngineError
from saga_dist.objectives.policy import sampling_log_probs
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.engines.deadlines import groups_too_late
from saga_dist.workers.engines.sampler import sample
from saga_dist.workers.engines.validation import check_context_length

if TYPE_CHECKING:
    from saga_dist.models.families.base import Family, FrozenBackbone, PromptLayout
    from saga_dist.models.families.key_values import KeyValues
    from saga_dist.workers.engines.factory import EngineContext


@dataclass(slots=True)
class _Row:
    """One completion during decoding."""

    sampling: Sampling
    """Sampling parameters."""
    uniforms_T: np.ndarray
    """[max_tokens] float64 in [0, 1): random number of each position, a function of seed and completion index."""
    token_ids: list[int] = field(default_factory=list)
    """Tokens generated so far."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probability of each generated token."""
    finish_reason: str = ""
    """``stop`` or ``length``; empty while the completion is not finished."""


@dataclass(frozen=True, slots=True)
class _Draws:
    """Sampling parameters and random numbers of a batch of rows."""

    temperature_B: torch.Tensor
    """float64 [B]."""
    top_p_B: torch.Tensor
    """float64 [B]."""
    uniforms_BT: torch.Tensor
    """float64 [B, T] in [0, 1), T the largest ``max_tokens``; zeros, never used, after a row's own ``max_tokens``."""

    @classmethod
    def of(cls, rows: Sequence[_Row], device: torch.device) -> _Draws:
        """Returns parameters and random numbers of rows that have no token yet."""
        uniforms_BT = np.zeros((len(rows), max(len(row.uniforms_T) for row in rows)))
        for target, row in zip(uniforms_BT, rows, strict=True):
            target[: len(row.uniforms_T)] = row.uniforms_T
        settings = torch.tensor([(row.sampling.temperature, row.sampling.top_p) for row in rows], dtype=torch.float64)
        temperature_B, top_p_B = settings.to(device).unbind(1)
        return cls(temperature_B, top_p_B, torch.from_numpy(uniforms_BT).to(device))

    @property
    def num_steps(self) -> int:
        """Largest ``max_tokens`` of the rows."""
        return self.uniforms_BT.shape[1]

    def of_rows(self, rows_R: torch.Tensor) -> _Draws:
        """Returns parameters and random numbers of some rows, int64 [R], in the given order."""
        return _Draws(self.temperature_B[rows_R], self.top_p_B[rows_R], self.uniforms_BT[rows_R])


class TransformersEngine:
    """Samples completions with the frozen backbone; implements ``protocols.Engine``.

    Args:
        backbone: the frozen language model.
        family: family bound to the same checkpoint. Its ``forbidden_token_ids`` are never sampled, because a completion
            that has one cannot be replayed.
        prompt_text: the whole prompt, with the family's placeholder once per image; it ends with text.
        max_model_len: largest length of prompt and completion together, in tokens; None for no limit.
        max_rows: largest number of completions that are generated at the same time.
        log_probs: distribution of the reported log-probabilities (``EngineContext.log_probs``).
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        *,
        family: Family,
        prompt_text: str,
        max_model_len: int | None = None,
        max_rows: int = 128,
        log_probs: Literal["model", "sampling"] = "model",
    ) -> None:
        self.broken = ""
        """Reason why the engine cannot be used any more; empty while it can."""
        self._backbone: FrozenBackbone | None = backbone
        self._max_model_len, self._max_rows = max_model_len, max_rows
        self._log_probs = log_probs
        self._tokenizer = family.load_tokenizer()
        self._prompt_ids: list[int] = self._tokenizer.encode(prompt_text, add_special_tokens=False)
        self._num_text_tokens = len(self._prompt_ids) - prompt_text.count(family.image_placeholder)
        self._forbidden = torch.tensor(family.forbidden_token_ids, dtype=torch.int64, device=backbone.device)
        self._end_ids = end_token_ids(family)
        self._common_prefix: KeyValues | None = None
        """Keys and values of the text before the first image, which do not depend on the images; None before the first
        call."""

    @classmethod
    def from_context(cls, context: EngineContext) -> TransformersEngine:
        """Returns the configured engine; loads the backbone."""
        return cls(
            context.family.load_backbone(dtype=context.dtype, device=context.device),
            family=context.family,
            prompt_text=context.prompt_text,
            max_model_len=context.max_model_len,
            max_rows=context.max_num_seqs,
            log_probs=context.log_probs,
        )

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order; a group does not depend on the other groups of the call.

        Args:
            tokens: encoder tokens of each pair, checked with ``validation.validate_tokens``.
            samplings: sampling parameters of each pair.
            deadline_s: longest time for the whole call, seconds; checked before every token.

        Raises:
            ConfigError: a prompt with its longest completion exceeds ``max_model_len``.
            DeadlineExceeded: the completions were not finished in time.
            EngineError: the model raised, or the engine was closed.
        """
        if self._backbone is None or self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="transformers engine")
        if self._max_model_len is not None:
            for record, sampling in zip(tokens, samplings, strict=True):
                check_context_length(
                    record, sampling, num_text_tokens=self._num_text_tokens, max_model_len=self._max_model_len
                )
        deadline = time.monotonic() + deadline_s
        groups = [_rows(sampling) for sampling in samplings]
        try:
            with torch.inference_mode():
                for batch in self._batches(tokens, samplings):
                    self._decode([tokens[index] for index in batch], [groups[index] for index in batch], deadline)
        except DeadlineExceeded:
            unfinished = sum(any(not row.finish_reason for row in rows) for rows in groups)
            raise groups_too_late(unfinished, len(groups), deadline_s, where="transformers engine") from None
        except RuntimeError as error:  # torch's errors, out of memory included
            self.broken = " ".join(str(error).split())[:600]
            raise EngineError(self.broken, where="transformers engine", fix="the worker starts a new engine") from error
        return [self._completions(record, rows) for record, rows in zip(tokens, groups, strict=True)]

    def close(self) -> None:
        """Releases the backbone; later calls raise."""
        self.broken = self.broken or "it was closed"
        self._backbone = self._common_prefix = None

    def _batches(self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling]) -> Iterator[list[int]]:
        """Yields indices of pairs to generate together: equal grids, so that prefixes stack without padding, and up to
        ``max_rows`` completions unless a single pair has more."""
        by_grids: dict[tuple[object, ...], list[int]] = {}
        for index, record in enumerate(tokens):
            by_grids.setdefault(record.grids, []).append(index)
        for indices in by_grids.values():
            batch: list[int] = []
            num_rows = 0
            for index in indices:
                if batch and num_rows + samplings[index].num_completions > self._max_rows:
                    yield batch
                    batch, num_rows = [], 0
                batch.append(index)
                num_rows += samplings[index].num_completions
            yield batch

    def _decode(self, tokens: Sequence[EncoderTokens], groups: Sequence[list[_Row]], deadline: float) -> None:
        """Samples tokens until every row of these groups is finished.

        Raises:
            DeadlineExceeded: the clock passed ``deadline`` (of ``time.monotonic``).
        """
        assert self._backbone is not None
        backbone = self._backbone
        prompt = backbone.build_layout(self._prompt_ids, tokens[0].grids)
        prefixes = []
        for record in tokens:
            _check_deadline(deadline)
            prefixes.append(self._prefill(prompt, record))
        cache = backbone.start_decode(prefixes, [len(group) for group in groups])
        del prefixes
        unfinished = [row for group in groups for row in group]
        draws = _Draws.of(unfinished, backbone.device)
        ids_B = prompt.token_ids_S[-1:].expand(len(unfinished))
        for step in range(draws.num_steps):
            _check_deadline(deadline)
            hidden_BD = backbone.decode_step(cache, ids_B, prompt.next_position - 1 + step)
            ids_B, log_probs_B = self._sample(backbone.logits(hidden_BD), draws, step)
            if finished := self._append(unfinished, ids_B.tolist(), log_probs_B.tolist()):
                order = cache.drop(finished)
                if not order:
                    return
                unfinished = [unfinished[row] for row in order]
                order_B = torch.tensor(order, device=ids_B.device)
                ids_B, draws = ids_B[order_B], draws.of_rows(order_B)

    def _prefill(self, prompt: PromptLayout, record: EncoderTokens) -> KeyValues:
        """Returns keys and values of the prompt without its last token, which is the input of the first decode step."""
        assert self._backbone is not None
        first_image, last = prompt.images[0].start, len(prompt.token_ids_S) - 1
        if self._common_prefix is None and first_image:
            self._common_prefix = self._backbone.prefill(prompt, None, slice(0, first_image))
        values_NW = record.values_NW.to(self._backbone.device)
        return self._backbone.prefill(prompt, values_NW, slice(first_image, last), self._common_prefix)

    def _sample(self, logits_BV: torch.Tensor, draws: _Draws, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each row's next token, int64 [B], and its log-probability [B].

        Raises:
            RuntimeError: a log-probability is NaN.
        """
        log_probs_BV = logits_BV.log_softmax(-1)
        if bool(log_probs_BV.isnan().any()):
            raise RuntimeError("log-probabilities are NaN or infinite: the model overflows on these tokens")
        allowed_BV = log_probs_BV.index_fill(1, self._forbidden, -torch.inf)
        ids_B = sample(
            allowed_BV,
            temperature_B=draws.temperature_B,
            top_p_B=draws.top_p_B,
            uniforms_B=draws.uniforms_BT[:, step],
        )
        if self._log_probs == "model":
            return ids_B, log_probs_BV.gather(1, ids_B[:, None])[:, 0]
        log_probs_B = sampling_log_probs(allowed_BV, ids_B, temperature_R=draws.temperature_B, top_p_R=draws.top_p_B)
        return ids_B, log_probs_B

    def _append(self, rows: Sequence[_Row], ids: Sequence[int], log_probs: Sequence[float]) -> list[int]:
        """Adds one token to each row; returns the indices of the rows that are finished now."""
        finished = []
        for index, (row, token_id, log_prob) in enumerate(zip(rows, ids, log_probs, strict=True)):
            row.token_ids.append(token_id)
            row.log_probs.append(log_prob)
            if token_id in self._end_ids:
                row.finish_reason = "stop"
            elif len(row.token_ids) == row.sampling.max_tokens:
                row.finish_reason = "length"
            if row.finish_reason:
                finished.append(index)
        return finished

    def _completions(self, record: EncoderTokens, rows: Sequence[_Row]) -> Completions:
        """Returns the completions of one pair from its finished rows."""
        return Completions(
            pair_id=record.pair_id,
            token_ids=tuple(tuple(row.token_ids) for row in rows),
            texts=tuple(self._tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows),
            log_probs=tuple(np.array(row.log_probs, dtype=np.float32) for row in rows),
            finish_reasons=tuple(row.finish_reason for row in rows),
            sampling=rows[0].sampling,
            encoder_version=record.encoder_version,
        )


def end_token_ids(family: Family) -> frozenset[int]:
    """Returns the ids that end a completion: those of the tokenizer and of the checkpoint's generation config."""
    ids = {family.load_tokenizer().eos_token_id}
    if family.files.find("generation_config.json") is not None:
        named = family.files.json("generation_config.json").get("eos_token_id")
        ids |= set(named) if isinstance(named, list) else {named}
    return frozenset(int(token_id) for token_id in ids if token_id is not None)


def _rows(sampling: Sampling) -> list[_Row]:
    """Returns the rows of one group; the random numbers of a row do not depend on the group's size."""
    return [
        _Row(sampling, counter_generator(sampling.seed, completion).random(sampling.max_tokens))
        for completion in range(sampling.num_completions)
    ]


def _check_deadline(deadline: float) -> None:
    """Raises ``DeadlineExceeded`` when the clock has passed ``deadline`` (of ``time.monotonic``)."""
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the time is up")
