"""The records check what they are made of, and count what they say they count."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass

import numpy as np
import pytest
import torch

from saga_dist import errors, types
from saga_dist.errors import SagaError, TokenError
from saga_dist.types import Completions, EncoderTokens, ImagePair, Sampling, ScoredGroup, StepResult


def make_tokens(**changes: object) -> EncoderTokens:
    options: dict[str, object] = {
        "pair_id": "s000000.m0.p00",
        "values_NW": torch.zeros(5, 12),
        "lengths": (2, 3),
        "grids": ((1, 2, 4), (1, 2, 6)),
        "num_deepstack": 2,
        "encoder_version": 0,
    }
    return EncoderTokens(**(options | changes))  # type: ignore[arg-type]


def make_group(rewards: list[float], lengths: list[int]) -> ScoredGroup:
    completions = Completions(
        pair_id="p",
        token_ids=tuple(tuple(range(length)) for length in lengths),
        texts=("",) * len(lengths),
        log_probs=tuple(np.zeros(length, np.float32) for length in lengths),
        finish_reasons=("stop",) * len(lengths),
        sampling=Sampling(len(lengths), 0.7, 0.95, 8, 0),
        encoder_version=0,
    )
    masks = tuple(np.zeros(length, bool) for length in lengths)
    rewards_G = np.array(rewards, np.float32)
    verdicts = tuple(reward == 1 for reward in rewards)
    return ScoredGroup(
        ImagePair("p", 0, 1, 2, 2), completions, verdicts, rewards_G, rewards_G == 1, rewards_G, masks, masks
    )


def test_a_pair_is_the_same_class_when_its_labels_are_equal() -> None:
    assert ImagePair("p", 4, 9, 7, 7).same
    assert not ImagePair("p", 4, 9, 7, 8).same


def test_the_width_of_one_level_is_the_wire_width_over_the_levels() -> None:
    assert make_tokens().width == 4
    assert make_tokens(num_deepstack=0).width == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values_NW": torch.zeros(1, 5, 12)}, r"token values have 3 dimensions; expected \[N, W\]"),
        ({"lengths": (2, 2)}, r"5 token rows, lengths \(2, 2\), 2 grids; expected one length and one grid per image"),
        ({"grids": ((1, 2, 4),)}, r"5 token rows, lengths \(2, 3\), 1 grids"),
        ({"num_deepstack": 4}, r"token width 12 with 4 DeepStack levels; expected a multiple of 1 \+ levels"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_with_their_pair(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TokenError, match=r"^pair s000000.m0.p00: " + message) as caught:
        make_tokens(**changes)
    assert "\n" not in str(caught.value)


def test_a_group_contributes_only_when_its_rewards_vary() -> None:
    assert make_group([1, 0, 0], [1, 1, 1]).contributes
    assert not make_group([1, 1, 1], [1, 1, 1]).contributes
    assert not make_group([0, 0], [1, 1]).contributes


def test_the_tokens_of_a_group_are_those_of_all_its_completions() -> None:
    assert make_group([1, 0, 0], [4, 0, 7]).num_tokens == 11


def test_every_record_is_frozen() -> None:
    records = [thing for thing in vars(types).values() if is_dataclass(thing)]
    assert len(records) >= 9
    for record in records:
        assert record.__dataclass_params__.frozen, record
    with pytest.raises(FrozenInstanceError):
        ImagePair("p", 0, 1, 2, 2).label_a = 3  # type: ignore[misc]


def test_step_results_do_not_share_their_metrics() -> None:
    first, second = StepResult(1), StepResult(2)
    assert first.metrics == {}
    assert first.metrics is not second.metrics


def test_every_record_has_a_sentence_on_what_it_is() -> None:
    for record in (thing for thing in vars(types).values() if is_dataclass(thing)):
        assert record.__doc__, record
        assert not record.__doc__.startswith(f"{record.__name__}("), record
        assert fields(record)


# ---------------------------------------------------------------------- errors


def error_classes() -> list[type[SagaError]]:
    return [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, SagaError)]


def test_a_message_is_one_line_of_what_where_expected_fix() -> None:
    error = errors.ConfigError("lr = -1", where="a.toml", expected="a positive number", fix="raise it")
    assert str(error) == "a.toml: lr = -1; expected a positive number; raise it"
    assert str(SagaError("gone")) == "gone"


@pytest.mark.parametrize("kind", error_classes())
def test_errors_survive_pickling_with_their_message(kind: type[SagaError]) -> None:
    error = kind("what", where="here", expected="there", fix="go")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.exit_code == error.exit_code


def test_exit_code_2_is_for_what_the_user_can_mend_and_1_for_the_system() -> None:
    """A new class belongs into one of the three lists."""
    mistakes = (
        "UserError", "ConfigError", "DataError", "ModelError", "TokenError", "CheckpointError", "DamagedCheckpoint",
        "OutputError",
    )  # fmt: skip
    failures = (
        "SagaError", "WireError", "WorkerError", "EngineError", "DeadlineExceeded", "TrainingError", "LearnerLost",
    )  # fmt: skip
    codes = {kind.__name__: kind.exit_code for kind in error_classes()}
    assert codes == dict.fromkeys(mistakes, 2) | dict.fromkeys(failures, 1) | {"Interrupted": 3}
