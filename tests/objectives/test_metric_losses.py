from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from saga_dist.errors import ConfigError
from saga_dist.objectives.metric_losses import build_metric_loss, proxy_parameters
from saga_dist.objectives.potential_field import PotentialFieldLoss

NAMES = ("potential_field", "proxy_anchor", "multi_similarity", "infonce")


def _batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(9, 6, generator=generator, dtype=torch.float64), dim=-1)
    return embeddings.to(dtype), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])


def _build(name: str, **params: float | int | str | bool) -> torch.nn.Module:
    return build_metric_loss(name, num_classes=5, embedding_dim=6, seed=4, **params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("params", [{}, {"margin": 0.0, "alpha": 8}])
def test_proxy_anchor_equals_the_formula(dtype: torch.dtype, params: dict) -> None:
    embeddings, labels = _batch(dtype)
    loss = _build("proxy_anchor", **params).to(dtype)
    margin, alpha = params.get("margin", 0.1), params.get("alpha", 32)
    (proxies,) = proxy_parameters(loss)
    unit = torch.nn.functional.normalize(proxies.detach().double(), dim=-1)
    similarity_IC = (embeddings.double() @ unit.T).tolist()
    pull, push = [], []
    for c in range(5):
        inside = [similarity_IC[i][c] for i in range(9) if labels[i] == c]
        outside = [similarity_IC[i][c] for i in range(9) if labels[i] != c]
        if inside:
            pull.append(math.log1p(sum(math.exp(-alpha * (s - margin)) for s in inside)))
        push.append(math.log1p(sum(math.exp(alpha * (s + margin)) for s in outside)))
    expected = sum(pull) / len(pull) + sum(push) / 5
    assert loss(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def _multi_similarity(embeddings: torch.Tensor, labels: torch.Tensor, miner: float) -> float:
    similarity = (embeddings.double() @ embeddings.double().T).tolist()
    total = 0.0
    for i in range(len(labels)):
        positives = [similarity[i][j] for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        negatives = [similarity[i][j] for j in range(len(labels)) if labels[j] != labels[i]]
        if miner:
            hard_positives = [s for s in positives if s - miner < max(negatives)]
            hard_negatives = [s for s in negatives if s + miner > min(positives)]
            positives, negatives = hard_positives, hard_negatives
        total += math.log1p(sum(math.exp(-2 * (s - 0.5)) for s in positives)) / 2
        total += math.log1p(sum(math.exp(50 * (s - 0.5)) for s in negatives)) / 50
    return total / len(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("miner", [0.1, 0.0])
def test_multi_similarity_equals_the_formula(dtype: torch.dtype, miner: float) -> None:
    embeddings, labels = _batch(dtype)
    expected = _multi_similarity(embeddings, labels, miner)
    assert _build("multi_similarity", miner=miner)(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_miner_is_on_unless_refused() -> None:
    embeddings, labels = _batch()
    assert _build("multi_similarity")(embeddings, labels).item() == pytest.approx(
        _multi_similarity(embeddings, labels, 0.1), rel=1e-5
    )
    assert _multi_similarity(embeddings, labels, 0.1) != pytest.approx(_multi_similarity(embeddings, labels, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("params", "temperature"), [({}, 0.07), ({"temperature": 0.5}, 0.5)])
def test_ntxent_equals_the_formula(dtype: torch.dtype, params: dict, temperature: float) -> None:
    embeddings, labels = _batch(dtype)
    logits = (embeddings.double() @ embeddings.double().T / temperature).tolist()
    terms = []
    for i in range(9):
        negatives = sum(math.exp(logits[i][j]) for j in range(9) if labels[j] != labels[i])
        positives = [logits[i][j] for j in range(9) if j != i and labels[j] == labels[i]]
        terms += [math.log(math.exp(logit) + negatives) - logit for logit in positives]
    expected = sum(terms) / len(terms)
    assert _build("infonce", **params)(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("params", "temperature"), [({}, 0.1), ({"temperature": 0.3}, 0.3)])
def test_supcon_equals_the_formula(params: dict, temperature: float) -> None:
    embeddings, labels = _batch()
    logits = (embeddings.double() @ embeddings.double().T / temperature).tolist()
    rows = []
    for i in range(9):
        log_others = math.log(sum(math.exp(logits[i][j]) for j in range(9) if j != i))
        positives = [logits[i][j] - log_others for j in range(9) if j != i and labels[j] == labels[i]]
        rows.append(-sum(positives) / len(positives))
    expected = sum(rows) / len(rows)
    assert _build("infonce", variant="supcon", **params)(embeddings, labels).item() == pytest.approx(expected, rel=1e-5)


def test_potential_field_is_ours_with_its_parameters() -> None:
    embeddings, labels = _batch()
    loss = _build("potential_field", proxies_per_class=2, alpha=2, delta=0.3, reduction="sum")
    own = PotentialFieldLoss(5, 6, seed=4, proxies_per_class=2, alpha=2.0, delta=0.3, reduction="sum")
    assert loss(embeddings, labels).item() == own(embeddings, labels).item()


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    embeddings, labels = _batch()
    embeddings.requires_grad_()
    state = torch.random.get_rng_state()
    first, again, other = (build_metric_loss(name, num_classes=5, embedding_dim=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    value = first(embeddings, labels)
    value.backward()
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert embeddings.grad is not None
    assert float(embeddings.grad.norm()) > 0
    assert again(embeddings, labels).item() == value.item()
    proxies = proxy_parameters(first)
    assert len(proxies) == (1 if name in ("potential_field", "proxy_anchor") else 0)
    for proxy, same, different in zip(proxies, proxy_parameters(again), proxy_parameters(other), strict=True):
        assert torch.equal(proxy, same)
        assert not torch.equal(proxy, different)
        assert proxy.grad is not None
        assert float(proxy.grad.norm()) > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert first(embeddings, labels).item() == value.item()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name: str) -> None:
    embeddings, labels = _batch()
    loss = _build(name)
    with pytest.raises(TypeError, match="bfloat16"):
        loss(embeddings.bfloat16(), labels)
    with pytest.raises(TypeError, match="integers"):
        loss(embeddings, labels.float())
    with pytest.raises(ValueError, match=r"expected \[I, E\]"):
        loss(embeddings, labels[:-1])
    with pytest.raises(ValueError, match="labels reach from 0 to 5"):
        loss(embeddings, torch.where(labels == 3, 5, labels))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("proxy_anker", {}, "proxy_anker.*expected one of potential_field, proxy_anchor"),
        ("proxy_anchor", {"gamma": 1.0}, "objective.metric_params.gamma.*margin, alpha"),
        ("proxy_anchor", {"alpha": "32"}, "'32'.*a positive number"),
        ("proxy_anchor", {"alpha": 0}, "a positive number"),
        ("proxy_anchor", {"alpha": float("nan")}, "a positive number"),
        ("proxy_anchor", {"margin": True}, "True.*a number"),
        ("potential_field", {"proxies_per_class": 2.5}, "a whole number"),
        ("potential_field", {"reduction": "none"}, "per_pair, per_active_pair, mean, sum"),
        ("potential_field", {"alpha": -1}, "a number >= 0"),
        ("multi_similarity", {"miner": -0.1}, "a number >= 0"),
        ("infonce", {"variant": "clip"}, "ntxent, supcon"),
    ],
)
def test_user_mistakes_are_one_line(name: str, params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _build(name, **params)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 classes"):
        build_metric_loss("infonce", num_classes=1, embedding_dim=4, seed=0)


# ---------------------------------------------------------------------- losses of one's own


class Centres(nn.Module):
    """Mean squared distance to a learned centre per class."""

    def __init__(self, num_classes: int, embedding_dim: int, *, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.centres_CE = nn.Parameter(torch.randn(num_classes, embedding_dim, generator=generator))
        self.origin_E = nn.Parameter(torch.zeros(embedding_dim), requires_grad=False)
        self.scale = scale

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        return self.scale * (embeddings_IE - self.origin_E - self.centres_CE[labels_I]).square().sum(-1).mean()


def free(*, num_classes: int, embedding_dim: int, seed: int, **params: Any) -> nn.Module:
    return Centres(num_classes, embedding_dim, seed=seed, scale=len(params))


def fails(*, num_classes: int, embedding_dim: int, seed: int) -> nn.Module:
    raise ValueError("first line\nsecond line")


class PerImage(nn.Module):
    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        return embeddings_IE.square().sum(-1)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of a user's own, ``mine``."""
    members = {
        "Centres": Centres,
        "free": free,
        "fails": fails,
        "number": lambda **sizes: 3,
        "no_seed": lambda num_classes, embedding_dim: nn.Identity(),
        "per_image": lambda **sizes: PerImage(),
        "three": 3,
    }
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(**members))


@pytest.mark.usefixtures("mine")
def test_a_class_of_ones_own_is_a_factory() -> None:
    embeddings, labels = _batch()
    loss = _build("mine:Centres", scale=0.5)
    (centres,) = proxy_parameters(loss)
    expected = sum(0.5 * (embeddings[i].double() - centres[labels[i]].double()).square().sum().item() for i in range(9))
    assert loss(embeddings, labels).item() == pytest.approx(expected / 9, rel=1e-5)
    with pytest.raises(ValueError, match="labels reach from 0 to 7"):
        loss(embeddings, torch.where(labels == 3, 7, labels))


@pytest.mark.usefixtures("mine")
def test_a_factory_that_takes_any_parameter_gets_them_all() -> None:
    embeddings, labels = _batch()
    three = _build("mine:free", first=1, second="x", third=True)(embeddings, labels).item()
    assert three == pytest.approx(3 * _build("mine:Centres")(embeddings, labels).item(), rel=1e-5)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("mine:Centres", {"scael": 1.0}, "metric_params.scael: mine:Centres has no parameter 'scael'; .* scale"),
        ("mine:fails", {"alpha": 1.0}, "metric_params.alpha: mine:fails has no parameter 'alpha'; expected none"),
        ("mine:fails", {}, "objective.metric_loss: 'mine:fails' raised ValueError: first line second line"),
        ("mine:number", {}, "objective.metric_loss: 'mine:number' returned int; expected a torch.nn.Module"),
        ("mine:no_seed", {}, "'mine:no_seed' raised TypeError: .* unexpected keyword argument 'seed'"),
        ("mine:three", {}, "'mine:three' raised TypeError: 3 is not a callable object"),
        ("mine:four", {}, "'mine:four': mine has no 'four'; check the name"),
        ("not_there_at_all:four", {}, "no module 'not_there_at_all' on node"),
    ],
)
def test_mistakes_in_a_loss_of_ones_own_are_one_line(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _build(name, **params)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("mine")
def test_a_loss_per_image_is_no_loss() -> None:
    with pytest.raises(ConfigError, match=r"objective.metric_loss: the loss returned shape \(9,\); expected a scalar"):
        _build("mine:per_image")(*_batch())
