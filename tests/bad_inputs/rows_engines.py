"""Engines and requests that cannot be used, in a worker whose groups are returned one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from bad_inputs.row import BadInput, Workspace

from saga_dist.data.prompts import VOCABULARIES, PromptSpec
from saga_dist.errors import WorkerError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.types import Completions, EncoderTokens, ImagePair, RolloutTask, Sampling
from saga_dist.workers.engines.scripted import ScriptedEngine
from saga_dist.workers.rollout import RolloutWorker

SAMPLING = Sampling(num_completions=2, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)
FEEDING = "rollout.continuous_feeding"

Step = Callable[[ScriptedEngine], list[Any]]


def value_row(name: str, value: str, *says: str) -> BadInput:
    """Returns a row of a value of the key."""
    line = f"train run.toml --run-dir {{folder}}/run --dry-run {value}"
    return BadInput(name, "continuous feeding", line, says or (FEEDING,), lambda workspace: workspace.write_config())


def tokens_of(family: Family, pair_id: str = "p0") -> EncoderTokens:
    layout = family.layout
    values_NW = torch.zeros(50, layout.wire_width)
    return EncoderTokens(pair_id, values_NW, (25, 25), ((1, 10, 10), (1, 10, 10)), layout.num_deepstack, 0)


def advanced(
    workspace: Workspace,
    *,
    step: Step | None = None,
    change: Callable[[EncoderTokens], EncoderTokens] = lambda tokens: tokens,
    reward: Callable[..., Any] | None = None,
) -> str:
    """Feeds a group to a worker; returns the pairs that came back, or what its engine failed with."""
    family = resolve_family(workspace.model)

    class Engine(ScriptedEngine):
        def step(self) -> list[Completions]:
            return super().step() if step is None else step(self)

    worker = RolloutWorker(
        lambda: Engine(lambda pair_id, completion, tokens: "{}", family.load_tokenizer()),
        family=family,
        prompt=PromptSpec(VOCABULARIES["standin_birds"]),
        dtype=torch.float32,
        advantage_epsilon=1e-4,
        deadline_s=0.05,
        **({} if reward is None else {"reward": reward}),
    )
    task = RolloutTask(ImagePair("p0", 0, 1, 0, 0), None, SAMPLING)
    try:
        groups = worker.advance([task], [change(tokens_of(family))])
    except WorkerError as error:
        return f"{error}; {worker.stats()['engine_failures']:g} engines replaced, {worker.in_flight} in flight"
    return f"{[group.pair_id for group in groups]}"


def engine_row(name: str, step: Step, *says: str) -> BadInput:
    """Returns a row of an engine of one's own: it is replaced, and no group of it is in flight any more."""
    says = (*says, "1 engines replaced, () in flight")
    act = lambda workspace: advanced(workspace, step=step)  # noqa: E731
    return BadInput(name, "own streaming engine", act, says, outcome="note")


def tokens_row(name: str, change: Callable[[EncoderTokens], EncoderTokens], *says: str) -> BadInput:
    """Returns a row of encoder tokens that no engine can take."""
    act = lambda workspace: advanced(workspace, change=change)  # noqa: E731
    return BadInput(name, "tokens of a group that is fed", act, says)


def renamed(engine: ScriptedEngine) -> list[Completions]:
    return [replace(group, pair_id="p9") for group in ScriptedEngine.step(engine)]


def twice(engine: ScriptedEngine) -> list[Completions]:
    return [*(groups := ScriptedEngine.step(engine)), *groups]


def raises(error: Exception) -> Step:
    def step(engine: ScriptedEngine) -> Any:
        raise error

    return step


def not_finite(tokens: EncoderTokens) -> EncoderTokens:
    return replace(tokens, values_NW=torch.full_like(tokens.values_NW, float("nan")))


def narrow(tokens: EncoderTokens) -> EncoderTokens:
    return EncoderTokens(tokens.pair_id, tokens.values_NW[:, :7], tokens.lengths, tokens.grids, 0, 0)


def rewarded(value: Any) -> Callable[[Workspace], str]:
    """Returns an act whose reward function returns this value."""
    from saga_dist.objectives.reward_fn import CheckedReward

    def act(workspace: Workspace) -> str:
        return advanced(workspace, reward=CheckedReward("mine:reward", lambda text, pair, prompt: value))

    return act


WRONG_REWARDS: Sequence[tuple[str, Any]] = (
    ("a reward that is not a number, of a group that was fed", (float("nan"), True)),
    ("a reward that is no pair, of a group that was fed", 1.0),
    ("a reward without a truth value, of a group that was fed", (1.0, "yes")),
)
UNKNOWN: Collection[tuple[str, str]] = (
    ("continuous feeding in the runtime's section", "runtime.continuous_feeding=true"),
    ("continuous feeding under another name", "rollout.continous_feeding=false"),
)

ROWS = [
    value_row("continuous feeding that is a word", f"{FEEDING}=sometimes", FEEDING, "sometimes"),
    value_row("continuous feeding that is a number", f"{FEEDING}=2"),
    value_row("continuous feeding that is a list", f"{FEEDING}=[true]"),
    value_row("continuous feeding that is empty", f"{FEEDING}="),
    *(value_row(name, value, "continuous_feeding") for name, value in UNKNOWN),
    engine_row("a step that returns the group of another pair", renamed, "a group of pair p9, which is not in flight"),
    engine_row("a step that returns a group twice", twice, "a group of pair p0, which is not in flight"),
    engine_row("a step that returns text", lambda engine: ["p0"], "AttributeError"),
    engine_row("a step that returns nothing", lambda engine: None, "1 of 1 groups unfinished"),  # type: ignore[arg-type, return-value]
    engine_row("a step that never finishes a group", lambda engine: [], "1 of 1 groups unfinished after 0.05 s"),
    engine_row("a step that raises", raises(ZeroDivisionError("x / 0")), "ZeroDivisionError: x / 0"),
    tokens_row(
        "tokens of another pair, which are fed", lambda tokens: replace(tokens, pair_id="p7"), "tokens of pair p7"
    ),
    tokens_row("tokens that are not finite, which are fed", not_finite, "pair p0", "NaN or infinite"),
    tokens_row("tokens of another width, which are fed", narrow, "pair p0", "width"),
    tokens_row(
        "tokens of another dtype, which are fed",
        lambda tokens: replace(tokens, values_NW=tokens.values_NW.bfloat16()),
        "pair p0",
        "float32",
    ),
    tokens_row(
        "tokens whose grids do not fit their number, which are fed",
        lambda tokens: replace(tokens, grids=((1, 10, 10), (1, 4, 4))),
        "pair p0",
        "grid",
    ),
    *(
        BadInput(name, "rewards of a group that is fed", rewarded(value), ("mine:reward", "pair p0"))
        for name, value in WRONG_REWARDS
    ),
]
