"""The pooler against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from saga_dist.models.pooler import Pooler


def _tokens(*lengths: int, width: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def _normalised(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.square().sum().sqrt()


def test_attention_is_appendix_b() -> None:
    (tokens_ND,) = _tokens(5)
    pooler = Pooler("attention", width=6, embedding_dim=3, seed=4)
    with torch.no_grad():
        pooler.query.mul_(5)
        pooler.projection.bias.add_(0.3)
    scores = [sum(pooler.query[i] * (pooler.key.weight[i] @ x) for i in range(6)) / math.sqrt(6) for x in tokens_ND]
    exponentials = [torch.exp(score) for score in scores]
    beta_N = torch.stack([e / sum(exponentials) for e in exponentials])
    pooled_D = sum(beta * x for beta, x in zip(beta_N, tokens_ND, strict=True))
    expected_E = _normalised(pooler.projection.weight @ pooled_D + pooler.projection.bias)
    output = pooler([tokens_ND])
    torch.testing.assert_close(output.log_weights_IN[0].exp(), beta_N)
    torch.testing.assert_close(output.embeddings_IE[0], expected_E)


def test_deviations_change_the_key_alone() -> None:
    (tokens_ND,) = _tokens(4)
    pooler = Pooler("attention", "mlp", width=6, embedding_dim=None, layer_norm=True)
    first, _, second = pooler.key
    normed_ND = (tokens_ND - tokens_ND.mean(1, keepdim=True)) / (
        tokens_ND.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    hidden_ND = torch.nn.functional.gelu(normed_ND @ first.weight.T + first.bias)
    scores_N = (hidden_ND @ second.weight.T + second.bias) @ pooler.query / math.sqrt(6)
    output = pooler([tokens_ND])
    torch.testing.assert_close(output.log_weights_IN[0], scores_N.log_softmax(0))
    # What is pooled are the tokens themselves, not the layer-normed ones.
    torch.testing.assert_close(output.embeddings_IE[0], _normalised(scores_N.softmax(0) @ tokens_ND))


def test_mean_and_max_by_hand() -> None:
    tokens_ND = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 2.0]])
    mean = Pooler("mean", width=2, embedding_dim=None)([tokens_ND])
    maximum = Pooler("max", width=2, embedding_dim=None)([tokens_ND])
    torch.testing.assert_close(mean.embeddings_IE, torch.tensor([[1.0, 2.0]]) / math.sqrt(5))
    torch.testing.assert_close(maximum.embeddings_IE, torch.tensor([[0.6, 0.8]]))
    assert mean.log_weights_IN is None
    assert maximum.log_weights_IN is None


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_ragged_images_give_what_each_gives_alone(kind: str) -> None:
    images = _tokens(3, 7, 5)
    pooler = Pooler(kind, width=6, embedding_dim=4)
    together = pooler(images)
    for index, image_ND in enumerate(images):
        alone = pooler([image_ND])
        torch.testing.assert_close(together.embeddings_IE[index], alone.embeddings_IE[0])
        if kind == "attention":
            length = len(image_ND)
            torch.testing.assert_close(together.log_weights_IN[index, :length], alone.log_weights_IN[0])
            assert torch.isneginf(together.log_weights_IN[index, length:]).all()


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_padding_has_no_influence_and_no_gradient(kind: str) -> None:
    tokens_IND = torch.stack(_tokens(6, 6)).requires_grad_()
    mask_IN = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    pooler = Pooler(kind, width=6, embedding_dim=4)
    expected = pooler([tokens_IND[0], tokens_IND[1, :2]]).embeddings_IE
    garbage_IND = tokens_IND.masked_fill(~mask_IN[..., None], 1e9)
    found = pooler(garbage_IND, mask_IN).embeddings_IE
    torch.testing.assert_close(found, expected)
    gradient_IND = torch.autograd.grad(pooler(tokens_IND, mask_IN).embeddings_IE.sum(), tokens_IND)[0]
    assert torch.isfinite(gradient_IND).all()
    assert (gradient_IND[1, 2:] == 0).all()
    assert (gradient_IND[1, :2] != 0).any()


def test_log_weights_reach_the_pooler_only() -> None:
    tokens_ND = _tokens(5)[0].requires_grad_()
    pooler = Pooler("attention", width=6, embedding_dim=4)
    log_weights_IN = pooler.log_weights([tokens_ND])
    torch.testing.assert_close(log_weights_IN, pooler([tokens_ND]).log_weights_IN)
    log_weights_IN[0, 0].backward()
    assert tokens_ND.grad is None
    assert pooler.query.grad.norm() > 0
    assert pooler.key.weight.grad.norm() > 0
    assert pooler.projection.weight.grad is None
    with pytest.raises(TypeError, match="mean pooler has no weights"):
        Pooler("mean", width=6, embedding_dim=4).log_weights([tokens_ND])


def test_it_starts_nearly_uniform_and_keeps_cosines() -> None:
    images = _tokens(25, 25, width=64)
    pooler = Pooler("attention", width=64, embedding_dim=64, seed=3)
    log_weights_IN = pooler(images).log_weights_IN
    assert (log_weights_IN.exp() - 1 / 25).abs().max() < 0.02
    mean = Pooler("mean", width=64, embedding_dim=64, seed=3)(images).embeddings_IE
    plain = Pooler("mean", width=64, embedding_dim=None)(images).embeddings_IE
    torch.testing.assert_close(mean[0] @ mean[1], plain[0] @ plain[1])


def test_the_seed_alone_decides_the_start() -> None:
    state = torch.get_rng_state()
    one, again, other = (Pooler("attention", width=6, embedding_dim=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(one.query, other.query)
    assert not torch.equal(one.key.weight, other.key.weight)


def test_half_precision_tokens_give_float32_unit_vectors() -> None:
    output = Pooler("attention", width=6, embedding_dim=4)([image.bfloat16() for image in _tokens(3, 3)])
    assert output.embeddings_IE.dtype == torch.float32
    torch.testing.assert_close(output.embeddings_IE.norm(dim=1), torch.ones(2))
