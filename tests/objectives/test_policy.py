"""Log-probabilities of the policy, by hand: probabilities .5, .25, .125, .125 of four tokens."""

from __future__ import annotations

import math

import pytest
import torch

from saga_dist.objectives.policy import model_log_probs, sampling_log_probs

PROBS = (0.5, 0.25, 0.125, 0.125)
LOGITS_14 = torch.tensor([PROBS]).log()


def at(token: int, *, temperature: float = 1.0, top_p: float = 1.0, forbidden: tuple[int, ...] = ()) -> float:
    """Probability of a token in the distribution that is sampled from."""
    settings = {"temperature_R": torch.tensor([temperature]), "top_p_R": torch.tensor([top_p])}
    return sampling_log_probs(LOGITS_14, torch.tensor([token]), **settings, forbidden_ids=forbidden).exp().item()


def test_the_model_itself_has_temperature_1_and_the_whole_vocabulary() -> None:
    assert model_log_probs(LOGITS_14, torch.tensor([2])).item() == pytest.approx(math.log(0.125))
    assert at(2) == pytest.approx(0.125)


def test_temperature_one_half_squares_the_probabilities() -> None:
    squares = [prob**2 for prob in PROBS]
    assert at(1, temperature=0.5) == pytest.approx(squares[1] / sum(squares))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.4, (0,)), (0.5, (0,)), (0.6, (0, 1)), (0.75, (0, 1)), (0.8, (0, 1, 2)), (0.9, (0, 1, 2, 3)), (1, (0, 1, 2, 3))],
)
def test_tokens_are_kept_until_their_sum_reaches_top_p(top_p: float, kept: tuple[int, ...]) -> None:
    assert at(0, top_p=top_p) == pytest.approx(0.5 / sum(PROBS[token] for token in kept))


def test_top_p_counts_after_the_temperature() -> None:
    """At temperature 1/2 the first token has 16/22 of the mass, so .7 keeps it alone."""
    assert at(0, temperature=0.5, top_p=0.7) == pytest.approx(1.0)


def test_a_token_outside_of_top_p_is_kept_all_the_same() -> None:
    assert at(3, top_p=0.5) == pytest.approx(0.125 / (0.5 + 0.125))


def test_forbidden_tokens_have_no_mass() -> None:
    assert at(1, forbidden=(0, 3)) == pytest.approx(0.25 / 0.375)
    assert at(1, top_p=0.6, forbidden=(0, 3)) == pytest.approx(1.0)


def test_greedy_rows_are_those_of_the_model_and_rows_have_their_own_settings() -> None:
    found = sampling_log_probs(
        LOGITS_14.expand(3, 4),
        torch.tensor([0, 0, 0]),
        temperature_R=torch.tensor([0.0, 1.0, 0.5]),
        top_p_R=torch.tensor([0.5, 0.6, 1.0]),
    ).exp()
    assert found.tolist() == pytest.approx([0.5, 0.5 / 0.75, 16 / 22])


def test_tokens_outside_get_no_gradient() -> None:
    logits_14 = LOGITS_14.clone().requires_grad_()
    settings = {"temperature_R": torch.tensor([1.0]), "top_p_R": torch.tensor([0.6])}
    sampling_log_probs(logits_14, torch.tensor([1]), **settings).sum().backward()
    assert logits_14.grad is not None
    assert logits_14.grad[0].tolist() == pytest.approx([-2 / 3, 2 / 3, 0, 0])
