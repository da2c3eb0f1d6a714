"""Sampling a token: by hand, and against sorting the whole vocabulary in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saga_dist.workers.engines.sampler import CANDIDATES, sample


@pytest.mark.parametrize(
    ("temperature", "top_p", "uniform", "expected"),
    [
        # Probabilities .5 (id 2), .3 (id 0), .2 (id 1); id 3 is forbidden.
        (1.0, 1.0, 0.0, 2),
        (1.0, 1.0, 0.4999, 2),
        (1.0, 1.0, 0.5001, 0),
        (1.0, 1.0, 0.7999, 0),
        (1.0, 1.0, 0.8001, 1),
        (1.0, 1.0, 1.0 - 1e-16, 1),
        # top-p .6 keeps .5 and .3: .5 / .8 = .625.
        (1.0, 0.6, 0.6249, 2),
        (1.0, 0.6, 0.6251, 0),
        (1.0, 0.6, 1.0 - 1e-16, 0),
        (1.0, 0.4, 0.99, 2),
        # Temperature .5 squares: .25, .09, .04 over .38.
        (0.5, 1.0, 0.6578, 2),
        (0.5, 1.0, 0.6580, 0),
        (0.5, 1.0, 0.8946, 0),
        (0.5, 1.0, 0.8948, 1),
        (0.0, 1.0, 0.99, 2),
    ],
)
def test_sample_by_hand(temperature: float, top_p: float, uniform: float, expected: int) -> None:
    log_probs_BV = torch.tensor([[0.3, 0.2, 0.5, 0.0]]).log()
    options = [torch.tensor([value], dtype=torch.float64) for value in (temperature, top_p, uniform)]
    temperature_B, top_p_B, uniforms_B = options
    assert sample(log_probs_BV, temperature_B=temperature_B, top_p_B=top_p_B, uniforms_B=uniforms_B).tolist() == [
        expected
    ]


def sampled_one_by_one(
    log_probs_BV: np.ndarray, temperatures: list[float], top_ps: list[float], uniforms: np.ndarray
) -> list[int]:
    """What ``sample`` must give: every row sorted whole, token after token."""
    drawn = []
    for log_probs_V, temperature, top_p, uniform in zip(log_probs_BV, temperatures, top_ps, uniforms, strict=True):
        order_V = np.lexsort((np.arange(len(log_probs_V)), -log_probs_V))
        if temperature == 0:
            drawn.append(int(order_V[0]))
            continue
        probs_V = np.exp(log_probs_V[order_V].astype(np.float64) / temperature)
        probs_V /= probs_V.sum()
        kept, mass = 0, 0.0
        while kept < len(probs_V) and mass < top_p and probs_V[kept] > 0:
            mass += probs_V[kept]
            kept += 1
        target, seen = uniform * mass, 0.0
        for rank in range(kept):
            seen += probs_V[rank]
            if seen > target:
                break
        drawn.append(int(order_V[rank]))
    return drawn


@pytest.mark.parametrize("num_tokens", [CANDIDATES // 2, CANDIDATES, CANDIDATES + 1, 12 * CANDIDATES])
@pytest.mark.parametrize("sharpness", [0.0, 0.3, 3.0])
def test_few_candidates_give_the_token_of_the_whole_vocabulary(num_tokens: int, sharpness: float) -> None:
    """At 0 all are equally likely, which no number of candidates tells apart; at 3 the candidates do nearly always."""
    rng = np.random.default_rng(num_tokens)
    temperatures = [1.0, 0.7, 0.0, 1.3, 0.2, 0.7] * 20
    top_ps = [1.0, 0.95, 1.0, 0.5, 0.9, 0.05] * 20
    logits_BV = (sharpness * rng.standard_normal((120, num_tokens))).astype(np.float32)
    logits_BV[:, rng.permutation(num_tokens)[: num_tokens // 4]] = logits_BV[:, :1]  # ties
    logits_BV[:, 3] = -np.inf
    uniforms_B = rng.random(120)
    log_probs_BV = torch.from_numpy(logits_BV).log_softmax(-1)
    found = sample(
        log_probs_BV,
        temperature_B=torch.tensor(temperatures, dtype=torch.float64),
        top_p_B=torch.tensor(top_ps, dtype=torch.float64),
        uniforms_B=torch.from_numpy(uniforms_B),
    ).tolist()
    assert found == sampled_one_by_one(log_probs_BV.numpy(), temperatures, top_ps, uniforms_B)
    assert len(set(found)) > 5
    assert 3 not in found
