"""Rollouts without vLLM: a batched sampling loop over the frozen backbone.

The same backbone replays the completions later, so the two log-probabilities differ by rounding alone. Nothing to
install; the faster one for small models without a GPU (docs/benches.md), where vLLM's bookkeeping outweighs the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from saga_dist.errors import DeadlineExceeded, EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.engines.sampler import sample
from saga_dist.workers.engines.validation import check_room

if TYPE_CHECKING:
    from saga_dist.models.families.base import Family, FrozenBackbone, PromptLayout
    from saga_dist.models.families.key_values import KeyValues
    from saga_dist.workers.engines.factory import EngineContext


@dataclass(slots=True)
class _Row:
    """One completion during decoding."""

    sampling: Sampling
    uniforms_T: np.ndarray
    """[max_tokens] float64 in [0, 1): the randomness of each position, fixed by seed and completion alone."""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    """Empty while unfinished."""


@dataclass(frozen=True, slots=True)
class _Draws:
    """Sampling settings and random numbers of the rows of a batch, side by side."""

    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    uniforms_BT: torch.Tensor
    """float64; behind a row's own end: zeros, never used."""

    @classmethod
    def of(cls, rows: Sequence[_Row], device: torch.device) -> _Draws:
        """Returns those of rows that have no token yet."""
        uniforms_BT = np.zeros((len(rows), max(len(row.uniforms_T) for row in rows)))
        for target, row in zip(uniforms_BT, rows, strict=True):
            target[: len(row.uniforms_T)] = row.uniforms_T
        settings = torch.tensor([(row.sampling.temperature, row.sampling.top_p) for row in rows], dtype=torch.float64)
        temperature_B, top_p_B = settings.to(device).unbind(1)
        return cls(temperature_B, top_p_B, torch.from_numpy(uniforms_BT).to(device))

    @property
    def num_steps(self) -> int:
        """Tokens of the longest row."""
        return self.uniforms_BT.shape[1]

    def of_rows(self, rows_R: torch.Tensor) -> _Draws:
        """Returns those of some rows, in the given order."""
        return _Draws(self.temperature_B[rows_R], self.top_p_B[rows_R], self.uniforms_BT[rows_R])


class TransformersEngine:
    """Samples completions with the frozen backbone; implements ``protocols.Engine``.

    Args:
        backbone: the language model.
        family: of the same checkpoint. Its marker ids are never sampled: a completion that holds one cannot be
            replayed.
        prompt_text: the whole prompt, with the family's placeholder once per image; ends with text.
        max_model_len: longest prompt and completion together, tokens; None sets no limit.
        max_rows: completions generated at the same time.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        *,
        family: Family,
        prompt_text: str,
        max_model_len: int | None = None,
        max_rows: int = 128,
    ) -> None:
        self.broken = ""
        """Why the engine cannot be used any more; empty while it can."""
        self._backbone: FrozenBackbone | None = backbone
        self._max_model_len, self._max_rows = max_model_len, max_rows
        self._tokenizer = family.load_tokenizer()
        self._prompt_ids: list[int] = self._tokenizer.encode(prompt_text, add_special_tokens=False)
        self._num_text_tokens = len(self._prompt_ids) - prompt_text.count(family.image_placeholder)
        self._forbidden = torch.tensor(family.forbidden_token_ids, dtype=torch.int64, device=backbone.device)
        self._end_ids = end_token_ids(family)
        self._opening: KeyValues | None = None
        """Keys and values of the text before the first image: constants, whatever the images are."""

    @classmethod
    def from_context(cls, context: EngineContext) -> TransformersEngine:
        """Returns the engine that a run's configuration describes; loads the backbone."""
        return cls(
            context.family.load_backbone(dtype=context.dtype, device=context.device),
            family=context.family,
            prompt_text=context.prompt_text,
            max_model_len=context.max_model_len,
            max_rows=context.max_num_seqs,
        )

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order; a group does not depend on what else is in the call.

        Args:
            tokens: checked tokens (``validation.validate_tokens``) of each pair.
            samplings: how to draw each pair's completions.
            deadline_s: longest time for the whole call, seconds; looked at before every token.

        Raises:
            ConfigError: a prompt with its longest completion does not fit ``max_model_len``.
            DeadlineExceeded: not finished in time.
            EngineError: the model raised, or the engine was closed.
        """
        if self._backbone is None or self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="transformers engine")
        if self._max_model_len is not None:
            for record, sampling in zip(tokens, samplings, strict=True):
                check_room(record, sampling, num_text_tokens=self._num_text_tokens, max_model_len=self._max_model_len)
        deadline = time.monotonic() + deadline_s
        groups = [_rows(sampling) for sampling in samplings]
        try:
            with torch.inference_mode():
                for batch in self._batches(tokens, samplings):
                    self._decode([tokens[index] for index in batch], [groups[index] for index in batch], deadline)
        except DeadlineExceeded:
            unfinished = sum(any(not row.finish_reason for row in rows) for rows in groups)
            raise DeadlineExceeded(
                f"{unfinished} of {len(groups)} groups unfinished after {deadline_s:g} s",
                where="transformers engine",
                fix="raise rollout.deadline_s, or lower rollout.groups_per_lease or rollout.max_tokens",
            ) from None
        except RuntimeError as error:  # what torch raises, out of memory included
            self.broken = " ".join(str(error).split())[:600]
            raise EngineError(self.broken, where="transformers engine", fix="the worker starts a new engine") from error
        return [self._completions(record, rows) for record, rows in zip(tokens, groups, strict=True)]

    def close(self) -> None:
        """Lets go of the backbone."""
        self.broken = self.broken or "it was closed"
        self._backbone = self._opening = None

    def _batches(self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling]) -> Iterator[list[int]]:
        """Indices of pairs with equal grids, up to ``max_rows`` completions: their prefixes stack without padding."""
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
        """Samples until every row of these groups is finished."""
        assert self._backbone is not None
        backbone = self._backbone
        prompt = backbone.build_layout(self._prompt_ids, tokens[0].grids)
        prefixes = []
        for record in tokens:
            _check_clock(deadline)
            prefixes.append(self._read_prefix(prompt, record))
        cache = backbone.start_decode(prefixes, [len(group) for group in groups])
        del prefixes
        alive = [row for group in groups for row in group]
        draws = _Draws.of(alive, backbone.device)
        ids_B = prompt.token_ids_S[-1:].expand(len(alive))
        for step in range(draws.num_steps):
            _check_clock(deadline)
            hidden_BD = backbone.decode_step(cache, ids_B, prompt.next_position - 1 + step)
            ids_B, log_probs_B = self._sample(backbone.logits(hidden_BD), draws, step)
            if finished := self._append(alive, ids_B.tolist(), log_probs_B.tolist()):
                order = cache.drop(finished)
                if not order:
                    return
                alive = [alive[row] for row in order]
                order_B = torch.tensor(order, device=ids_B.device)
                ids_B, draws = ids_B[order_B], draws.of_rows(order_B)

    def _read_prefix(self, prompt: PromptLayout, record: EncoderTokens) -> KeyValues:
        """Keys and values of the prompt but for its last token, which starts the sampling."""
        assert self._backbone is not None
        first_image, last = prompt.images[0].start, len(prompt.token_ids_S) - 1
        if self._opening is None and first_image:
            self._opening = self._backbone.prefill(prompt, None, slice(0, first_image))
        values_NW = record.values_NW.to(self._backbone.device)
        return self._backbone.prefill(prompt, values_NW, slice(first_image, last), self._opening)

    def _sample(self, logits_BV: torch.Tensor, draws: _Draws, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Next token of each row and its log-probability under the untempered, untruncated distribution."""
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
        return ids_B, log_probs_BV.gather(1, ids_B[:, None])[:, 0]

    def _append(self, rows: Sequence[_Row], ids: Sequence[int], log_probs: Sequence[float]) -> list[int]:
        """Adds one token to each row; returns those that it finishes."""
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
    """Returns the ids that end a completion: the tokenizer's, and those of the checkpoint's generation config."""
    ids = {family.load_tokenizer().eos_token_id}
    if family.files.find("generation_config.json") is not None:
        named = family.files.json("generation_config.json").get("eos_token_id")
        ids |= set(named) if isinstance(named, list) else {named}
    return frozenset(int(token_id) for token_id in ids if token_id is not None)


def _rows(sampling: Sampling) -> list[_Row]:
    """Rows of one group; the k-th has the same randomness whatever the group's size."""
    return [
        _Row(sampling, counter_generator(sampling.seed, completion).random(sampling.max_tokens))
        for completion in range(sampling.num_completions)
    ]


def _check_clock(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the time is up")
