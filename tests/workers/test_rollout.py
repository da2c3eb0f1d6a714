"""The rollout worker with scripted engines: scores by hand, and what happens when things go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_dist.data.prompts import VOCABULARIES, PromptSpec
from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError, TokenError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.objectives.reward_fn import CheckedReward
from saga_dist.protocols import Engine, StreamingEngine
from saga_dist.protocols import RolloutWorker as RolloutWorkerProtocol
from saga_dist.types import EncoderTokens, ImagePair, RolloutTask, Sampling
from saga_dist.workers.engines.scripted import CompletionScript, ScriptedEngine
from saga_dist.workers.engines.transformers_engine import TransformersEngine
from saga_dist.workers.engines.vllm_engine import VllmEngine
from saga_dist.workers.rollout import RolloutWorker

PROMPT = PromptSpec(VOCABULARIES["standin_birds"])
SAMPLING = Sampling(num_completions=8, temperature=0.7, top_p=0.95, max_tokens=400, seed=1)


@pytest.fixture(scope="module")
def family(tiny_checkpoint: Path) -> Family:
    return resolve_family(tiny_checkpoint)


def make_tokens(family: Family, pair_id: str = "p0", version: int = 5) -> EncoderTokens:
    layout = family.layout
    values_NW = torch.zeros(50, layout.wire_width)
    return EncoderTokens(pair_id, values_NW, (25, 25), ((1, 10, 10), (1, 10, 10)), layout.num_deepstack, version)


def make_task(pair_id: str = "p0", *, same: bool = True, sampling: Sampling = SAMPLING) -> RolloutTask:
    return RolloutTask(ImagePair(pair_id, 0, 1, 7, 7 if same else 8), None, sampling)


def make_worker(
    family: Family, engines: Callable[[], Engine], *, prompt: PromptSpec = PROMPT, deadline_s: float = 60.0, **more: Any
) -> RolloutWorker:
    return RolloutWorker(
        engines,
        family=family,
        prompt=prompt,
        dtype=torch.float32,
        advantage_epsilon=1e-4,
        deadline_s=deadline_s,
        **more,
    )


def scripted(family: Family, script: CompletionScript) -> Callable[[], ScriptedEngine]:
    tokenizer = family.load_tokenizer()
    return lambda: ScriptedEngine(script, tokenizer, end_token_id=tokenizer.eos_token_id)


def answer(verdict: str, first: str = "red bill, blue crown", second: str = "grün, 灰 tail") -> str:
    return json.dumps(
        {
            "bird_1": {"bill": first},
            "bird_2": {"bill": second},
            "differences": "bill",
            "confidence": "high",
            "reasoning": "so",
            "same_species": verdict,
        },
        ensure_ascii=False,
    )


def five_of_eight(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
    return answer("yes" if completion < 5 else "no")


# ---------------------------------------------------------------- scores


def test_scores_by_hand(family: Family) -> None:
    worker = make_worker(family, scripted(family, five_of_eight))
    same, different = worker.rollout(
        [make_task("p0"), make_task("p1", same=False)], [make_tokens(family, "p0"), make_tokens(family, "p1")]
    )
    assert same.verdicts == different.verdicts == (True,) * 5 + (False,) * 3
    assert same.rewards_G.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert different.rewards_G.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    # Mean .625; sample deviation sqrt((5 * .375^2 + 3 * .625^2) / 7) = .51755.
    np.testing.assert_allclose(same.advantages_G, [0.7244] * 5 + [-1.2074] * 3, atol=1e-4)
    np.testing.assert_allclose(different.advantages_G, [-0.7244] * 5 + [1.2074] * 3, atol=1e-4)
    assert same.is_correct_G.tolist() == [True] * 5 + [False] * 3
    assert different.is_correct_G.tolist() == [False] * 5 + [True] * 3
    assert same.contributes
    assert different.contributes
    assert same.rewards_G.dtype == same.advantages_G.dtype == np.float32
    assert same.pair == make_task("p0").pair
    assert same.completions.encoder_version == 5


def test_a_reward_of_ones_own_scores_each_distinct_text_once(family: Family) -> None:
    asked: list[str] = []

    def bill_words(text: str, pair: ImagePair, prompt: PromptSpec) -> tuple[float, bool]:
        asked.append(text)
        assert (pair.pair_id, prompt) == ("p0", PROMPT)
        return text.count("bill") / 4, "blue" in text

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        return answer("no", first="bill bill" if completion == 2 else "red, blue") if completion else "nothing"

    (group,) = make_worker(family, scripted(family, script), reward=bill_words).rollout(
        [make_task()], [make_tokens(family)]
    )
    assert asked == [group.completions.texts[index] for index in (0, 1, 2)]
    assert group.rewards_G.tolist() == [0, 0.75, 1.25, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert group.is_correct_G.tolist() == [False, True, False, True, True, True, True, True]
    assert group.verdicts == (None, *(False,) * 7), "the verdict is the text's, whatever the reward"
    # Mean .71875; sample deviation sqrt((.71875^2 + .53125^2 + 6 * .03125^2) / 7) = .33905.
    np.testing.assert_allclose(group.advantages_G, [-2.1193, 0.0921, 1.5664, *[0.0921] * 5], atol=1e-4)
    assert group.contributes
    assert group.rewards_G.dtype == np.float32
    assert group.is_correct_G.dtype == np.bool_


def test_correct_does_not_mean_contributing(family: Family) -> None:
    worker = make_worker(family, scripted(family, five_of_eight), reward=lambda text, pair, prompt: (0.5, True))
    (group,) = worker.rollout([make_task()], [make_tokens(family)])
    assert group.is_correct_G.all()
    assert not group.contributes
    assert group.advantages_G.tolist() == [0] * 8


def test_a_reward_that_fails_is_the_users_mistake_and_costs_no_engine(family: Family) -> None:
    reward = CheckedReward("mine:reward", lambda text, pair, prompt: (float("nan"), True))
    worker = make_worker(family, scripted(family, five_of_eight), reward=reward)
    with pytest.raises(ConfigError, match=r"objective.reward = 'mine:reward', pair p0: returned \(nan, True\)"):
        worker.rollout([make_task()], [make_tokens(family)])
    assert worker.stats()["engine_failures"] == 0


def test_masks_cover_the_descriptions_and_nothing_else(family: Family) -> None:
    tokenizer = family.load_tokenizer()
    (group,) = make_worker(family, scripted(family, five_of_eight)).rollout([make_task()], [make_tokens(family)])
    for ids, text, mask_a, mask_b in zip(
        group.completions.token_ids, group.completions.texts, group.describes_a, group.describes_b, strict=True
    ):
        assert mask_a.dtype == mask_b.dtype == np.bool_
        assert mask_a.shape == mask_b.shape == (len(ids),)
        assert not (mask_a & mask_b).any()
        chosen_a = tokenizer.decode([i for i, inside in zip(ids, mask_a, strict=True) if inside])
        chosen_b = tokenizer.decode([i for i, inside in zip(ids, mask_b, strict=True) if inside])
        # Tokens that straddle a brace count, so a token may bring a neighbour along.
        assert "red bill, blue crown" in chosen_a
        assert "grün, 灰 tail" in chosen_b
        assert "grün" not in chosen_a
        assert "same_species" not in chosen_a + chosen_b
        assert len(chosen_a) + len(chosen_b) < len(text)


def test_a_tolerated_form_has_the_verdict_and_the_masks_of_its_last_answer(family: Family) -> None:
    plain = answer("no")
    text = f"<think>{answer('yes', first='scarlet')}?</think> {answer('yes', second='navy')}\n{plain}"
    tokenizer = family.load_tokenizer()
    worker = make_worker(family, scripted(family, lambda *_: text.replace('"no"', "**No.**")))
    (group,) = worker.rollout([make_task(same=False)], [make_tokens(family)])
    assert group.verdicts == (False,) * 8
    assert group.rewards_G.tolist() == [1] * 8
    for ids, mask_a, mask_b in zip(group.completions.token_ids, group.describes_a, group.describes_b, strict=True):
        chosen_a, chosen_b = (
            tokenizer.decode([token for token, inside in zip(ids, mask, strict=True) if inside])
            for mask in (mask_a, mask_b)
        )
        assert "red bill, blue crown" in chosen_a and "scarlet" not in chosen_a
        assert "grün, 灰 tail" in chosen_b and "navy" not in chosen_b


def test_nonsense_is_reward_zero_and_no_trouble(family: Family) -> None:
    texts = ["", "I think they are the same.", '{"same_species": "maybe"}', answer("yes")[:40], answer("no")]
    worker = make_worker(family, scripted(family, lambda _, completion, __: texts[completion % 5]))
    (group,) = worker.rollout([make_task()], [make_tokens(family)])
    assert group.verdicts == (None, None, None, None, False, None, None, None)
    assert group.rewards_G.tolist() == [0] * 8
    assert group.advantages_G.tolist() == [0] * 8
    assert not group.contributes
    assert not group.describes_a[0].any()
    assert group.describes_a[3].any(), "a description that was cut off is still one"


def test_a_single_completion_is_judged_without_advantage(family: Family) -> None:
    """Evaluation asks once, greedily: a verdict and a reward, nothing to compare with."""
    once = replace(SAMPLING, num_completions=1, temperature=0.0)
    (group,) = make_worker(family, scripted(family, five_of_eight)).rollout(
        [make_task(sampling=once)], [make_tokens(family)]
    )
    assert (group.verdicts, group.rewards_G.tolist(), group.advantages_G.tolist()) == ((True,), [1.0], [0.0])
    assert not group.contributes


def test_the_generic_prompt_describes_nothing(family: Family) -> None:
    generic = replace(PROMPT, variant="generic")
    (group,) = make_worker(family, scripted(family, five_of_eight), prompt=generic).rollout(
        [make_task()], [make_tokens(family)]
    )
    assert group.contributes
    assert not any(mask.any() for mask in (*group.describes_a, *group.describes_b))
    assert [len(mask) for mask in group.describes_a] == [len(ids) for ids in group.completions.token_ids]


def test_a_real_engine_through_the_worker(family: Family) -> None:
    backbone = family.load_backbone()
    text = f"{family.image_placeholder} and {family.image_placeholder}: the same?"
    worker = make_worker(family, lambda: TransformersEngine(backbone, family=family, prompt_text=text))
    short = replace(SAMPLING, max_tokens=5)
    groups = worker.rollout([make_task("p0", sampling=short)], [make_tokens(family)])
    assert groups[0].rewards_G.tolist() == [0] * 8  # random weights say nothing
    assert groups[0].num_tokens == sum(len(ids) for ids in groups[0].completions.token_ids) > 8
    assert worker.stats()["tokens"] == groups[0].num_tokens


# ---------------------------------------------------------------- groups that join and leave


def fed(family: Family, *, script: CompletionScript = five_of_eight, **more: Any) -> RolloutWorker:
    """A worker whose groups take as many steps of the engine as the number in their pair id."""
    tokenizer = family.load_tokenizer()

    def start() -> ScriptedEngine:
        return ScriptedEngine(script, tokenizer, num_steps=lambda pair_id: int(pair_id[1:]))

    return make_worker(family, start, **more)


def work(family: Family, *names: str) -> tuple[list[RolloutTask], list[EncoderTokens]]:
    return [make_task(name) for name in names], [make_tokens(family, name) for name in names]


def names_of(groups: list[Any]) -> list[str]:
    return [group.pair_id for group in groups]


def test_a_short_group_is_returned_before_a_long_one_and_another_takes_its_place(family: Family) -> None:
    worker = fed(family)
    assert worker.can_be_fed
    assert names_of(worker.advance(*work(family, "p5", "p1"))) == ["p1"]
    assert worker.in_flight == ("p5",)
    assert names_of(worker.advance(*work(family, "p2"))) == ["p2"], "it joined after one step, and took two"
    assert names_of(worker.advance(*work(family, "p2"))) == ["p5", "p2"], "both after the fifth step"
    assert worker.advance([], []) == []
    assert worker.in_flight == ()
    assert (worker.stats()["groups"], worker.stats()["engine_replacements"]) == (4, 0)


def test_groups_are_the_same_fed_or_together(family: Family) -> None:
    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        return answer("yes" if completion % int(pair_id[1:]) else "no", first=f"{pair_id} {completion}")

    worker, names = fed(family, script=script), ["p3", "p1", "p2", "p4"]
    together = {group.pair_id: group for group in worker.rollout(*work(family, *names))}
    one_by_one = worker.advance(*work(family, *names[:2]))
    one_by_one += worker.advance(*work(family, *names[2:]))
    while arrived := worker.advance([], []):
        one_by_one += arrived
    assert names_of(one_by_one) == ["p1", "p3", "p2", "p4"]
    for group in one_by_one:
        expected = together[group.pair_id]
        assert group.completions.token_ids == expected.completions.token_ids
        assert group.completions.texts == expected.completions.texts
        assert group.advantages_G.tolist() == expected.advantages_G.tolist()
        assert group.verdicts == expected.verdicts


def test_cancelled_groups_leave_the_engine_and_may_come_again(family: Family) -> None:
    worker = fed(family)
    assert names_of(worker.advance(*work(family, "p9", "p1"))) == ["p1"]
    assert names_of(worker.advance(*work(family, "p2"), cancelled=["p9", "p77"])) == ["p2"]
    assert worker.in_flight == ()
    again = worker.advance(*work(family, "p9"))
    assert names_of(again) == ["p9"]
    assert names_of(worker.advance(*work(family, "p3"))) == ["p3"]
    assert names_of(worker.advance(*work(family, "p3"), cancelled=["p3"])) == ["p3"], "cancelled before it is added"


def test_an_interruption_ends_a_call_after_a_step(family: Family) -> None:
    worker = fed(family)
    for steps_left in (2, 1):
        tasks = work(family, "p3") if steps_left == 2 else ([], [])
        assert worker.advance(*tasks, interrupted=lambda: True) == []
        assert worker.in_flight == ("p3",)
    assert names_of(worker.advance([], [], interrupted=lambda: True)) == ["p3"], "every call takes one step"


def test_a_group_in_flight_has_a_deadline_of_its_own(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("saga_dist.workers.rollout.time.monotonic", lambda: clock[0])
    worker = fed(family, deadline_s=10.0)
    worker.advance(*work(family, "p9"), interrupted=lambda: True)
    clock[0] = 6.0
    worker.advance(*work(family, "p8"), interrupted=lambda: True)
    clock[0] = 10.0
    with pytest.raises(DeadlineExceeded, match="1 of 2 groups unfinished after 10 s.*rollout.deadline_s"):
        worker.advance([], [])
    assert (worker.in_flight, worker.stats()["engine_failures"]) == ((), 1)
    assert names_of(worker.advance(*work(family, "p2"))) == ["p2"], "a new engine"


def test_refused_tokens_leave_the_groups_in_flight_as_they_are(family: Family) -> None:
    worker = fed(family)
    worker.advance(*work(family, "p2"), interrupted=lambda: True)
    tasks, _ = work(family, "p1", "p4")
    with pytest.raises(TokenError, match="tokens of pair other"):
        worker.advance(tasks, [make_tokens(family, "p1"), make_tokens(family, "other")])
    assert worker.in_flight == ("p2",)
    assert names_of(worker.advance([], [])) == ["p2"]


def test_an_engine_that_cannot_take_groups_one_by_one_is_given_whole_leases(family: Family) -> None:
    class Plain:
        """An engine of one's own with the two methods of the contract."""

        def __init__(self) -> None:
            self._engine = ScriptedEngine(five_of_eight, family.load_tokenizer())

        def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> Any:
            return self._engine.generate(tokens, samplings, deadline_s=deadline_s)

        def close(self) -> None:
            self._engine.close()

    class Louder(ScriptedEngine):
        """One that inherits the methods of a streaming engine and replaces ``generate`` alone."""

        def generate(self, tokens: Any, samplings: Any, *, deadline_s: float) -> Any:
            return super().generate(tokens, samplings, deadline_s=deadline_s)

    for start in (Plain, lambda: Louder(five_of_eight, family.load_tokenizer())):
        worker = make_worker(family, start)
        assert not worker.can_be_fed
        assert names_of(worker.rollout(*work(family, "p1", "p2"))) == ["p1", "p2"]


# ---------------------------------------------------------------- trouble


def test_refused_tokens_cost_nothing(family: Family) -> None:
    asked: list[str] = []

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        asked.append(pair_id)
        return answer("yes")

    worker = make_worker(family, scripted(family, script))
    good = make_tokens(family)
    narrow = EncoderTokens("p0", good.values_NW[:, : family.layout.width], good.lengths, good.grids, 0, 5)
    for tokens, said in ((narrow, "width"), (make_tokens(family, "other"), "tokens of pair other")):
        with pytest.raises(TokenError, match=said):
            worker.rollout([make_task()], [tokens])
    with pytest.raises(TokenError, match="width"):
        worker.rollout([make_task("p1"), make_task()], [make_tokens(family, "p1"), narrow])
    assert asked == []
    assert worker.rollout([make_task()], [good])[0].rewards_G.tolist() == [1] * 8
    assert worker.stats()["refused_calls"] == 3
    assert worker.stats()["engine_replacements"] == 0


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (EngineError("out of memory"), EngineError, "out of memory"),
        (DeadlineExceeded("too slow"), DeadlineExceeded, "too slow"),
        (ZeroDivisionError("something odd"), EngineError, "ZeroDivisionError: something odd"),
    ],
)
def test_a_failed_engine_is_replaced_before_the_next_call(
    family: Family, failure: Exception, raised: type[Exception], said: str
) -> None:
    tokenizer = family.load_tokenizer()
    engines: list[ScriptedEngine] = []

    def fails_at_first(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        if len(engines) == 1 and pair_id == "p1":
            raise failure
        return answer("yes")

    def start() -> ScriptedEngine:
        engines.append(ScriptedEngine(fails_at_first, tokenizer))
        return engines[-1]

    worker = make_worker(family, start)
    tasks, tokens = [make_task("p0"), make_task("p1")], [make_tokens(family, "p0"), make_tokens(family, "p1")]
    assert len(worker.rollout(tasks[:1], tokens[:1])) == 1
    with pytest.raises(raised, match=said):
        worker.rollout(tasks, tokens)
    assert engines[0].broken == "it was closed", "its memory is freed before another starts"
    assert len(engines) == 1, "nothing starts before it is needed"
    assert len(worker.rollout(tasks, tokens)) == 2
    assert len(engines) == 2
    stats = worker.stats()
    assert (stats["groups"], stats["engine_failures"], stats["engine_replacements"]) == (3, 1, 1)


def test_a_replacement_that_does_not_start_is_tried_again(family: Family) -> None:
    tokenizer = family.load_tokenizer()
    starts: list[int] = []

    def start() -> ScriptedEngine:
        starts.append(len(starts))
        if len(starts) == 2:
            raise EngineError("no memory left")
        return ScriptedEngine(script, tokenizer)

    def script(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        if len(starts) == 1:
            raise EngineError("died")
        return answer("yes")

    worker = make_worker(family, start)
    for said in ("died", "no memory left"):
        with pytest.raises(EngineError, match=said):
            worker.rollout([make_task()], [make_tokens(family)])
    assert worker.rollout([make_task()], [make_tokens(family)])[0].contributes is False
    assert len(starts) == 3


def test_a_mistake_in_the_configuration_does_not_cost_the_engine(family: Family) -> None:
    def too_long(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        raise ConfigError("does not fit")

    worker = make_worker(family, scripted(family, too_long))
    with pytest.raises(ConfigError):
        worker.rollout([make_task()], [make_tokens(family)])
    assert worker.stats()["engine_failures"] == 0


def test_an_engine_that_cannot_be_closed_does_not_hide_why_it_broke(family: Family) -> None:
    class Stuck(ScriptedEngine):
        def close(self) -> None:
            raise RuntimeError("stuck")

    def dies(pair_id: str, completion: int, tokens: EncoderTokens) -> str:
        raise EngineError("the real reason")

    worker = make_worker(family, lambda: Stuck(dies, family.load_tokenizer()))
    with pytest.raises(EngineError, match="the real reason"):
        worker.rollout([make_task()], [make_tokens(family)])


# ---------------------------------------------------------------- the scripted engine


def test_scripted_completions_look_like_sampled_ones(family: Family) -> None:
    tokenizer = family.load_tokenizer()
    engine = ScriptedEngine(five_of_eight, tokenizer, end_token_id=tokenizer.eos_token_id, log_prob=-0.5)
    (group,) = engine.generate([make_tokens(family)], [SAMPLING], deadline_s=10)
    assert group.texts[0] == answer("yes")
    assert group.texts[7] == answer("no")
    assert all(ids[-1] == tokenizer.eos_token_id for ids in group.token_ids)
    assert group.finish_reasons == ("stop",) * 8
    assert group.log_probs[0].tolist() == [-0.5] * len(group.token_ids[0])
    (cut,) = engine.generate([make_tokens(family)], [replace(SAMPLING, max_tokens=9)], deadline_s=10)
    assert cut.token_ids[0] == group.token_ids[0][:9]
    assert cut.finish_reasons == ("length",) * 8


def test_a_scripted_engine_breaks_like_a_real_one(family: Family) -> None:
    tokenizer = family.load_tokenizer()
    engine = ScriptedEngine(five_of_eight, tokenizer)
    with pytest.raises(DeadlineExceeded):
        engine.generate([make_tokens(family)], [SAMPLING], deadline_s=-1)
    with pytest.raises(EngineError, match="cannot be used any more"):
        engine.generate([make_tokens(family)], [SAMPLING], deadline_s=10)


def test_the_contracts_hold(family: Family) -> None:
    engine = ScriptedEngine(five_of_eight, family.load_tokenizer())
    assert isinstance(engine, Engine)
    assert isinstance(engine, StreamingEngine)
    assert issubclass(VllmEngine, StreamingEngine)
    assert not issubclass(TransformersEngine, StreamingEngine)
    assert isinstance(make_worker(family, lambda: engine), RolloutWorkerProtocol)
    assert issubclass(VllmEngine, Engine)
    assert issubclass(TransformersEngine, Engine)
