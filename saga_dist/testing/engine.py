"""Contract check of rollout engines (``rollout.engine``)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saga_dist.errors import DeadlineExceeded, EngineError, UserError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family, FrozenBackbone
from saga_dist.protocols import Engine, StreamingEngine
from saga_dist.standin.random_families import write_random_family
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.workers.engines.factory import EngineContext, EngineFactory
from saga_dist.workers.engines.streaming import as_streaming
from saga_dist.workers.engines.transformers_engine import end_token_ids

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=24, seed=11)
"""Sampling parameters of the requests."""
NUM_PAIRS = 2
"""Number of pairs in a request."""
SIDE = 5
"""Tokens per side of every image; all images of a run have the same size."""
MAX_MODEL_LEN = 256
"""Longest sequence of prompt and completion, tokens."""
DEADLINE_S = 300.0
"""Deadline of a call that is to succeed, seconds."""
MAX_STEPS = 1000
"""Steps within which a streaming engine has to finish its groups; each has at most 24 tokens."""
TOO_LATE_S = 1e-9
"""Deadline of a call that is to miss it, seconds."""
LOG_PROB_TOLERANCE = 1e-3
"""Largest difference between the log-probabilities of engine and backbone, nats.

The float32 kernels of different libraries differ by much less.
"""


def check_engine(factory: EngineFactory, *, family: Family | None = None, samples_model: bool = True) -> None:
    """Checks the engine of a factory, on the CPU in float32; one engine is started and closed.

    - Completions have the form of ``protocols.Engine`` and of ``Completions``.
    - The completions of a pair do not depend on the other pairs of the call.
    - Log-probabilities are those of the frozen model; temperature 0 is greedy; another seed gives other completions.
    - An engine with ``add``, ``step`` and ``abort`` (``protocols.StreamingEngine``) gives a group the same completions
      when it joins a running batch, and when another group joins or leaves.
    - A request that does not fit ``max_model_len`` is refused; a missed deadline raises ``DeadlineExceeded``; a closed
      engine raises ``EngineError``.

    Args:
        factory: the object that ``rollout.engine`` names.
        family: a small model; None: a tiny random Qwen3-VL with DeepStack, which is made for the check.
        samples_model: False for an engine that does not sample the model but answers by a rule; the third point is not
            checked then. Training with such an engine requires a larger ``rollout.max_log_prob_gap``.

    Raises:
        AssertionError: the engine does not meet its contract; the message says in which point.
    """
    with _small_family(family) as model:
        context = _context(model)
        requests = _requests(model)
        engine = factory(context)
        assert isinstance(engine, Engine), f"the factory returned a {type(engine).__name__} without generate or close"
        try:
            groups = _generate(engine, requests)
            _check_form(groups, requests, model)
            _check_independence(engine, requests, groups)
            if (streaming := as_streaming(engine)) is not None:
                _check_streaming(streaming, requests, groups)
            if samples_model:
                _check_sampling(engine, requests, groups, context)
            _check_refusal(engine, requests)
            _check_deadline(engine, requests)
        finally:
            engine.close()
        _check_closed(engine, requests)


@contextmanager
def _small_family(family: Family | None) -> Iterator[Family]:
    if family is not None:
        yield family
        return
    with tempfile.TemporaryDirectory() as folder:
        yield resolve_family(write_random_family(Path(folder), "qwen3_vl"))


def _context(family: Family) -> EngineContext:
    image, chat = family.image_placeholder, family.chat_format
    return EngineContext(
        family=family,
        prompt_text=f"{chat.before_user}{image} and {image}: same species?{chat.after_user}",
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=NUM_PAIRS * SAMPLING.num_completions,
        gpu_memory_share=0.5,
        tensor_parallel_size=1,
        seed=0,
    )


def _requests(family: Family) -> list[EncoderTokens]:
    """Returns the tower's tokens of two random images for each pair."""
    tower, layout = family.load_tower(), family.layout
    generator = np.random.default_rng(0)
    records = []
    shape = (2, SIDE * layout.pixels_per_token, SIDE * layout.pixels_per_token, 3)
    for index in range(NUM_PAIRS):
        pixels = tower.preprocess(list(generator.integers(0, 256, shape, dtype=np.uint8)))
        with torch.no_grad():
            values_NW = tower(pixels)
        records.append(EncoderTokens(f"pair-{index}", values_NW, pixels.lengths, pixels.grids, layout.num_deepstack, 3))
    return records


def _generate(engine: Engine, requests: Sequence[EncoderTokens], sampling: Sampling = SAMPLING) -> list[Completions]:
    groups = engine.generate(requests, [sampling] * len(requests), deadline_s=DEADLINE_S)
    assert len(groups) == len(requests), f"{len(groups)} groups for {len(requests)} pairs"
    return groups


def _check_form(groups: Sequence[Completions], requests: Sequence[EncoderTokens], family: Family) -> None:
    tokenizer = family.load_tokenizer()
    forbidden, ends = set(family.forbidden_token_ids), end_token_ids(family)
    for group, record in zip(groups, requests, strict=True):
        name = group.pair_id
        assert name == record.pair_id, f"group {name} in the place of {record.pair_id}: keep the order of the pairs"
        assert group.encoder_version == record.encoder_version, f"{name}: encoder_version is not the tokens'"
        assert group.sampling == SAMPLING, f"{name}: sampling is not the one that was asked for"
        columns = (group.token_ids, group.texts, group.log_probs, group.finish_reasons)
        sizes = {len(column) for column in columns}
        assert sizes == {SAMPLING.num_completions}, f"{name}: {sizes} completions, not {SAMPLING.num_completions}"
        for ids, text, log_probs_T, reason in zip(*columns, strict=True):
            assert 1 <= len(ids) <= SAMPLING.max_tokens, f"{name}: a completion of {len(ids)} tokens"
            assert not forbidden & set(ids), f"{name}: image markers were sampled: {sorted(forbidden & set(ids))}"
            decoded = tokenizer.decode(list(ids), skip_special_tokens=True)
            assert text == decoded, f"{name}: text {text!r} is not its tokens decoded, {decoded!r}"
            special = [token for token in tokenizer.all_special_tokens if token in text]
            assert not special, f"{name}: {special[0]} in the text {text!r}"
            assert log_probs_T.dtype == np.float32, f"{name}: log-probabilities are {log_probs_T.dtype}, not float32"
            assert log_probs_T.shape == (len(ids),), (
                f"{name}: {log_probs_T.shape} log-probabilities of {len(ids)} tokens"
            )
            assert np.isfinite(log_probs_T).all(), f"{name}: a log-probability is not finite"
            assert (log_probs_T <= 0).all(), f"{name}: a log-probability is above 0"
            assert not ends & set(ids[:-1]), f"{name}: tokens after the end of the turn"
            expected = "stop" if ids[-1] in ends else "length"
            assert reason == expected, f"{name}: finish reason {reason!r}, expected {expected!r}"
            assert reason == "stop" or len(ids) == SAMPLING.max_tokens, f"{name}: cut off before max_tokens"


def _check_independence(engine: Engine, requests: Sequence[EncoderTokens], groups: Sequence[Completions]) -> None:
    """Checks that the completions of a pair are the same alone as among other pairs, as a retry requires."""
    for record, group in reversed(list(zip(requests, groups, strict=True))):
        (alone,) = _generate(engine, [record])
        assert alone.token_ids == group.token_ids, f"{record.pair_id}: other completions alone than beside other pairs"


def _check_streaming(engine: StreamingEngine, requests: Sequence[EncoderTokens], groups: Sequence[Completions]) -> None:
    """Checks that groups can join a running batch and leave it, without a change to the completions of others."""
    first, second = requests
    expected = {group.pair_id: group.token_ids for group in groups}
    engine.add(first, SAMPLING)
    found = engine.step()
    engine.add(second, SAMPLING)
    found += _steps(engine, len(requests) - len(found))
    assert {group.pair_id for group in found} == set(expected), f"{len(found)} groups of {len(expected)} pairs"
    for group in found:
        assert group.token_ids == expected[group.pair_id], f"{group.pair_id}: other completions when a group joins"
    engine.add(second, SAMPLING)
    engine.add(first, SAMPLING)
    engine.abort([second.pair_id, "a pair that is not there"])
    alone, *others = _steps(engine, 1)
    names = [group.pair_id for group in (alone, *others)]
    assert names == [first.pair_id], f"{second.pair_id} was aborted, and the groups {names} came back"
    assert alone.token_ids == expected[first.pair_id], f"{alone.pair_id}: other completions when a group was aborted"
    engine.add(second, SAMPLING)
    again, *others = _steps(engine, 1)
    assert not others and again.token_ids == expected[second.pair_id], f"{second.pair_id}: another group after an abort"
    with contextlib.suppress(UserError):
        engine.add(first, replace(SAMPLING, max_tokens=MAX_MODEL_LEN))
        raise AssertionError("add: a completion that does not fit max_model_len was not refused with a ConfigError")


def _steps(engine: StreamingEngine, number: int) -> list[Completions]:
    """Returns the next finished groups, that many at least."""
    found: list[Completions] = []
    for _ in range(MAX_STEPS):
        if len(found) >= number:
            return found
        found += engine.step()
    raise AssertionError(f"{number - len(found)} groups are not finished after {MAX_STEPS} steps")


def _check_sampling(
    engine: Engine, requests: Sequence[EncoderTokens], groups: Sequence[Completions], context: EngineContext
) -> None:
    backbone = context.family.load_backbone()
    for record, group in zip(requests, groups, strict=True):
        for ids, log_probs_T in zip(group.token_ids, group.log_probs, strict=True):
            logits_TV = _logits(backbone, context, record, ids)
            expected_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
            gap = float(abs(log_probs_T - expected_T).max())
            assert gap <= LOG_PROB_TOLERANCE, (
                f"{record.pair_id}: log-probabilities are {gap:.2g} nats off the frozen model's (before temperature "
                "and top-p)"
            )
    greedy = replace(SAMPLING, temperature=0.0)
    (group,) = _generate(engine, requests[:1], greedy)
    assert len(set(group.token_ids)) == 1, "temperature 0: the completions of a group differ"
    logits_TV = _logits(backbone, context, requests[0], group.token_ids[0])
    logits_TV[:, list(context.family.forbidden_token_ids)] = -torch.inf
    likeliest = tuple(logits_TV.argmax(-1).tolist())
    assert group.token_ids[0] == likeliest, "temperature 0: not the most likely tokens"
    (other,) = _generate(engine, requests[:1], replace(SAMPLING, seed=SAMPLING.seed + 1))
    assert other.token_ids != groups[0].token_ids, "another seed gives the same completions"


def _logits(
    backbone: FrozenBackbone, context: EngineContext, record: EncoderTokens, ids: Sequence[int]
) -> torch.Tensor:
    """Returns the frozen model's logits for each token of a completion, float32 [T, V]."""
    prompt_ids = context.family.load_tokenizer().encode(context.prompt_text, add_special_tokens=False)
    prompt = backbone.build_layout(prompt_ids, record.grids)
    last = len(prompt.token_ids_S) - 1
    with torch.no_grad():
        past = backbone.prefill(prompt, record.values_NW, slice(0, last))
        inputs_1T = torch.tensor([[int(prompt.token_ids_S[last]), *ids[:-1]]])
        hidden_TD = backbone.forward_completions(past, inputs_1T, prompt.next_position - 1).hidden_GTD[0]
        return backbone.logits(hidden_TD)


def _check_refusal(engine: Engine, requests: Sequence[EncoderTokens]) -> None:
    too_long = replace(SAMPLING, max_tokens=MAX_MODEL_LEN)
    try:
        engine.generate(requests[:1], [too_long], deadline_s=DEADLINE_S)
    except UserError:
        pass
    else:
        raise AssertionError("a completion that does not fit max_model_len was not refused with a ConfigError")
    _generate(engine, requests[:1])  # the engine is still usable


def _check_deadline(engine: Engine, requests: Sequence[EncoderTokens]) -> None:
    try:
        engine.generate(requests, [SAMPLING] * len(requests), deadline_s=TOO_LATE_S)
    except DeadlineExceeded:
        return
    raise AssertionError("a call past its deadline did not raise DeadlineExceeded")


def _check_closed(engine: Engine, requests: Sequence[EncoderTokens]) -> None:
    engine.close()  # a second call does nothing
    try:
        engine.generate(requests, [SAMPLING] * len(requests), deadline_s=DEADLINE_S)
    except EngineError:
        return
    raise AssertionError("a closed engine did not raise EngineError")
