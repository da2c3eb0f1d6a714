"""The contract check of engines: the built-in ones pass, and every way to break the contract is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.config.registries import ENGINES
from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.models.supported import SUPPORTED_FAMILIES
from saga_dist.testing.engine import check_engine
from saga_dist.types import Completions
from saga_dist.workers.engines.factory import EngineContext
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.engines.transformers_engine import TransformersEngine, end_token_ids
from saga_dist.workers.engines.validation import check_context_length


@pytest.fixture(scope="module")
def family(tiny_checkpoint: Path) -> Family:
    return resolve_family(tiny_checkpoint)


def _marked(family: str, name: str) -> Any:
    """An engine of vLLM takes ten seconds to start: that of Qwen3-VL does for the tests without ``slow``."""
    marks = [pytest.mark.vllm, *([] if family == "qwen3_vl" else [pytest.mark.slow])] if name == "vllm" else []
    return pytest.param(family, name, marks=marks)


@pytest.mark.parametrize(
    ("family_checkpoint", "name"),
    [_marked(*pair) for pair in product(SUPPORTED_FAMILIES, ENGINES.builtin)],
    indirect=["family_checkpoint"],
)
def test_built_in_engines_hold_the_contract(name: str, family_checkpoint: Path) -> None:
    check_engine(ENGINES.load(name), family=resolve_family(family_checkpoint))


class RuleEngine(ScriptedEngine):
    """Answers by rule, and refuses what does not fit, as an engine must."""

    def __init__(self, context: EngineContext) -> None:
        end = min(end_token_ids(context.family))
        super().__init__(
            lambda pair, completion, tokens: f"red {completion}", context.family.load_tokenizer(), end_token_id=end
        )
        self._max_model_len = context.max_model_len

    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        for record, sampling in zip(tokens, samplings, strict=True):
            check_context_length(record, sampling, num_text_tokens=0, max_model_len=self._max_model_len)
        return super().generate(tokens, samplings, deadline_s=deadline_s)


def test_an_engine_by_rule_holds_it_without_the_models_probabilities(family: Family) -> None:
    check_engine(RuleEngine, family=family, samples_model=False)
    with pytest.raises(AssertionError, match="nats off the frozen model's"):
        check_engine(RuleEngine, family=family)


class StreamingRule(RuleEngine):
    """Answers by rule, each group after three steps."""

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._num_steps = lambda pair_id: 3

    def add(self, tokens: Any, sampling: Any) -> None:
        check_context_length(tokens, sampling, num_text_tokens=0, max_model_len=self._max_model_len)
        super().add(tokens, sampling)

    def step(self) -> list[Completions]:
        return super().step()


class ForgetsALateOne(StreamingRule):
    def add(self, tokens: Any, sampling: Any) -> None:
        if not self._batch:
            super().add(tokens, sampling)


class DependsOnItsBatch(StreamingRule):
    def step(self) -> list[Completions]:
        num_others = len(self._batch) - 1
        return [
            replace(g, token_ids=tuple(ids[num_others:] + ids[:num_others] for ids in g.token_ids))
            for g in super().step()
        ]


class CannotAbort(StreamingRule):
    def abort(self, pair_ids: Any) -> None:
        pass


class NeverRefusesToAdd(StreamingRule):
    def add(self, tokens: Any, sampling: Any) -> None:
        ScriptedEngine.add(self, tokens, sampling)


def test_a_streaming_engine_holds_it(family: Family) -> None:
    check_engine(StreamingRule, family=family, samples_model=False)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (ForgetsALateOne, "1 groups are not finished after 1000 steps"),
        (DependsOnItsBatch, "other completions when a group joins"),
        (CannotAbort, "pair-1 was aborted, and the groups"),
        (NeverRefusesToAdd, "add: a completion that does not fit max_model_len was not refused"),
    ],
)
def test_a_broken_streaming_contract_is_found(engine: type[StreamingRule], said: str, family: Family) -> None:
    with pytest.raises(AssertionError, match=said):
        check_engine(engine, family=family, samples_model=False)


class Broken(TransformersEngine):
    """The transformers engine with one thing wrong."""

    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        return self.wrong(super().generate(tokens, samplings, deadline_s=deadline_s))

    def wrong(self, groups: list[Completions]) -> list[Completions]:
        raise NotImplementedError


def spoil_each(change: Callable[[Completions], Completions]) -> type[Broken]:
    class Spoilt(Broken):
        def wrong(self, groups: list[Completions]) -> list[Completions]:
            return [change(group) for group in groups]

    return Spoilt


def with_log_probs(change: Callable[[np.ndarray], np.ndarray]) -> type[Broken]:
    return spoil_each(lambda group: replace(group, log_probs=tuple(change(values_T) for values_T in group.log_probs)))


class Reversed(Broken):
    def wrong(self, groups: list[Completions]) -> list[Completions]:
        return groups[::-1]


class OneTooFew(Broken):
    def wrong(self, groups: list[Completions]) -> list[Completions]:
        return groups[1:]


class DependsOnItsCall(TransformersEngine):
    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        moved = [replace(sampling, seed=sampling.seed + len(tokens)) for sampling in samplings]
        groups = super().generate(tokens, moved, deadline_s=deadline_s)
        return [replace(group, sampling=sampling) for group, sampling in zip(groups, samplings, strict=True)]


class IgnoresSeeds(TransformersEngine):
    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        fixed = [replace(sampling, seed=1) for sampling in samplings]
        groups = super().generate(tokens, fixed, deadline_s=deadline_s)
        return [replace(group, sampling=sampling) for group, sampling in zip(groups, samplings, strict=True)]


class NeverRefuses(TransformersEngine):
    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        try:
            return super().generate(tokens, samplings, deadline_s=deadline_s)
        except ConfigError:
            return []


class HasTime(TransformersEngine):
    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        try:
            return super().generate(tokens, samplings, deadline_s=deadline_s)
        except DeadlineExceeded:
            return []


class AnswersWhenClosed(TransformersEngine):
    def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> list[Completions]:
        try:
            return super().generate(tokens, samplings, deadline_s=deadline_s)
        except EngineError:
            return []


def first_token_again(group: Completions) -> Completions:
    return replace(group, token_ids=tuple((ids[0], *ids) for ids in group.token_ids))


def says_stop(group: Completions) -> Completions:
    return replace(group, finish_reasons=tuple("stop" if r == "length" else "length" for r in group.finish_reasons))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (OneTooFew, "1 groups for 2 pairs"),
        (Reversed, "group pair-1 in the place of pair-0"),
        (spoil_each(lambda group: replace(group, encoder_version=7)), "encoder_version"),
        (spoil_each(lambda group: replace(group, sampling=replace(group.sampling, top_p=0.5))), "sampling"),
        (spoil_each(lambda group: replace(group, texts=group.texts[1:])), r"\{3, 4\}|\{4, 3\}"),
        (spoil_each(lambda group: replace(group, texts=tuple(f"{text}!" for text in group.texts))), "tokens decoded"),
        (spoil_each(first_token_again), "tokens"),
        (spoil_each(says_stop), "finish reason"),
        (with_log_probs(lambda values_T: values_T.astype(np.float64)), "float64, not float32"),
        (with_log_probs(lambda values_T: values_T[1:]), "log-probabilities of"),
        (with_log_probs(lambda values_T: values_T * np.float32("nan")), "not finite"),
        (with_log_probs(lambda values_T: -values_T), "above 0"),
        (with_log_probs(lambda values_T: values_T - np.float32(0.01)), "0.01 nats off"),
        (DependsOnItsCall, "other completions alone"),
        (IgnoresSeeds, "another seed gives the same"),
        (NeverRefuses, "was not refused"),
        (HasTime, "did not raise DeadlineExceeded"),
        (AnswersWhenClosed, "a closed engine"),
    ],
)
def test_a_broken_contract_is_found(engine: type[TransformersEngine], said: str, family: Family) -> None:
    with pytest.raises(AssertionError, match=said):
        check_engine(engine.from_context, family=family)


def test_what_is_no_engine_is_found(family: Family) -> None:
    with pytest.raises(AssertionError, match="returned a int without generate or close"):
        check_engine(lambda context: 3, family=family)  # type: ignore[arg-type, return-value]


def test_image_markers_in_a_completion_are_found(family: Family) -> None:
    marker = family.forbidden_token_ids[0]

    def with_marker(groups: Sequence[Completions]) -> list[Completions]:
        return [replace(group, token_ids=tuple((marker, *ids[1:]) for ids in group.token_ids)) for group in groups]

    class SamplesMarkers(Broken):
        def wrong(self, groups: list[Completions]) -> list[Completions]:
            return with_marker(groups)

    with pytest.raises(AssertionError, match=f"image markers were sampled: \\[{marker}\\]"):
        check_engine(SamplesMarkers.from_context, family=family)
