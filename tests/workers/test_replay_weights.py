"""Log-probabilities of replay against the engine's, and importance weights of stale groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from workers.replay_reference import Reference
from workers.replay_world import (
    World,
    record_of,
    replayed_gradients,
    worker_of,
)

from saga_dist.types import (
    WEIGHT_QUANTILES,
    ReplayTask,
    ScoredGroup,
)


def test_the_gap_to_the_engine_is_the_mean_absolute_difference(deep_world: World, deep_reference: Reference) -> None:
    # The engine log-probabilities of the groups above are zeros, so the gap is the mean magnitude.
    results, _ = replayed_gradients(deep_world, completions_per_chunk=3)
    for found, log_probs in zip(results, deep_reference.log_probs, strict=True):
        assert found.mismatch.log_prob_gap == pytest.approx(torch.cat(log_probs).abs().mean().item(), rel=1e-5)
        for mine, theirs in zip(found.mismatch.replayed, log_probs, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-5)


def _log_probs_by_hand(world: World, group: ScoredGroup, pixels: list[np.ndarray], temperature: float) -> torch.Tensor:
    """Log-probabilities of a group's tokens at a temperature, by the untouched model on pixels, one after the other."""
    worker, tower = worker_of(world), world.family.load_tower()
    batch = tower.preprocess(pixels)
    record = record_of(group, batch, tower(batch), tower.layout.num_deepstack)
    prompt, values_NW = worker._prompt.load(record)
    found = []
    for ids in group.completions.token_ids:
        prefix = worker._prompt.keys_and_values(prompt, values_NW)
        inputs = torch.tensor([[int(prompt.token_ids_S[-1]), *ids]])
        hidden = worker._backbone.forward_completions(prefix, inputs, prompt.next_position - 1).hidden_GTD[0, :-1]
        log_probs_TV = torch.log_softmax(worker._backbone.logits(hidden).double() / temperature, -1)
        found.append(log_probs_TV.gather(1, torch.tensor(ids)[:, None])[:, 0])
    return torch.cat(found).detach()


@pytest.mark.parametrize("logits_chunk", [4, 1024])
def test_stale_groups_weigh_by_the_tempered_ratio_and_the_cut(deep_world: World, logits_chunk: int) -> None:
    """Today's tokens are image pair 0's, the group was sampled from those of pair 1: w = p_today / p_old at T = 0.7."""
    group = deep_world.groups()[0]
    group = replace(
        group, completions=replace(group.completions, sampling=replace(group.completions.sampling, temperature=0.7))
    )
    tower = deep_world.family.load_tower()
    records = []
    for version, pair in enumerate(deep_world.pairs):
        pixels = tower.preprocess(pair)
        records.append(replace(record_of(group, pixels, tower(pixels), 2), encoder_version=version))
    today, old = records
    worker = worker_of(deep_world, completions_per_chunk=2, logits_chunk=logits_chunk)
    found = worker.replay(ReplayTask(group, today, 100, False, behaviour=old, truncate_at=1.01), today, old)

    now, then = (_log_probs_by_hand(deep_world, group, pair, 0.7) for pair in deep_world.pairs)
    ratio = (now - then).exp()
    assert (ratio - 1).abs().max() > 0.01, "the two encoders differ"
    expected = torch.quantile(ratio, torch.tensor(WEIGHT_QUANTILES, dtype=torch.float64))
    torch.testing.assert_close(torch.tensor(found.mismatch.weight_quantiles).double(), expected, rtol=1e-4, atol=1e-5)
    assert found.mismatch.truncated_share == pytest.approx((ratio > 1.01).double().mean().item())
    plain = _log_probs_by_hand(deep_world, group, deep_world.pairs[0], 1.0)
    advantages = np.repeat(group.advantages_G, [len(ids) for ids in group.completions.token_ids])
    loss = -(torch.from_numpy(advantages) * ratio.clamp(max=1.01) * plain).sum() / 100
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    # What the engine computes differently is measured where it sampled: on the old tokens.
    behaviour = _log_probs_by_hand(deep_world, group, deep_world.pairs[1], 1.0)
    assert found.mismatch.log_prob_gap == pytest.approx(behaviour.abs().mean().item(), rel=1e-4)
    assert found.mismatch.mismatch_kl == pytest.approx((behaviour.exp() - 1 - behaviour).mean().item(), rel=1e-4)
    np.testing.assert_allclose(np.concatenate(found.mismatch.replayed), behaviour.numpy(), rtol=1e-4, atol=1e-5)


def test_weights_of_one_change_nothing(deep_world: World) -> None:
    """Weights of 1 give the gradient without weights, others another one; without a weight nothing is reported."""
    group = deep_world.groups()[0]
    tower = deep_world.family.load_tower()
    pixels = [tower.preprocess(pair) for pair in deep_world.pairs]
    today, old = (record_of(group, each, tower(each), 2) for each in pixels)
    worker = worker_of(deep_world)
    on_policy = worker.replay(ReplayTask(group, today, 100, False), today)
    same = worker.replay(ReplayTask(group, today, 100, False, behaviour=today, truncate_at=2.0), today, today)
    torch.testing.assert_close(same.values_NW, on_policy.values_NW, rtol=1e-5, atol=1e-9)
    assert same.mismatch.weight_quantiles == pytest.approx((1.0,) * len(WEIGHT_QUANTILES), abs=1e-5)
    assert on_policy.mismatch.weight_quantiles == ()
    capped = worker.replay(ReplayTask(group, today, 100, False, behaviour=old, truncate_at=1e-9 + 1.0), today, old)
    assert not torch.allclose(capped.values_NW, on_policy.values_NW, rtol=1e-3)
