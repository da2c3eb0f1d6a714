from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from saga_dist.objectives.potential_field import PotentialFieldLoss, Reduction, potential_field_energy

EMBEDDINGS = [[1.0, 0.0], [0.8, 0.6]]
PROXIES = [[[0.6, 0.8]], [[-1.0, 0.0]]]
LABELS = torch.tensor([0, 1])


def _loop(
    embeddings_IE: torch.Tensor, labels_I: torch.Tensor, proxies_CME: torch.Tensor, delta: float, alpha: float
) -> torch.Tensor:
    """The definition, pair by pair, with autograd."""
    items = [(int(label), row) for label, row in zip(labels_I, embeddings_IE, strict=True)]
    items += [(label, proxy) for label, proxies_ME in enumerate(proxies_CME) for proxy in proxies_ME]
    total = embeddings_IE.new_zeros(())
    for (label_r, r), (label_z, z) in itertools.permutations(items, 2):
        distance = (r - z).square().sum().clamp(min=1e-8).sqrt()
        far = float(distance.detach()) >= delta
        if label_r == label_z:
            total = total - (distance**-alpha if far else delta**-alpha)
        else:
            total = total + (delta**-alpha if far else distance**-alpha)
    return total


@pytest.mark.parametrize(
    ("alpha", "delta", "energy"),
    [(2, 0.5, 45.944444444), (3, 0.2, 996.912111541), (4, 0.2, 4996.720679012), (0, 0.2, 4.0), (0, 0.5, 4.0)],
)
def test_hand_checked_energies(alpha: float, delta: float, energy: float) -> None:
    embeddings, proxies = torch.tensor(EMBEDDINGS, dtype=torch.float64), torch.tensor(PROXIES, dtype=torch.float64)
    value = potential_field_energy(embeddings, LABELS, proxies, delta=delta, alpha=alpha, reduction="sum")
    assert value.item() == pytest.approx(energy, abs=1e-9)
    mean = potential_field_energy(embeddings, LABELS, proxies, delta=delta, alpha=alpha, reduction="mean")
    assert mean.item() == pytest.approx(energy / 2, abs=1e-9)


def test_hand_checked_reductions() -> None:
    """Four items have 12 ordered pairs; 6 exert a force: e0 p0 (-1/0.8), e1 p0 (1/0.08), e1 p1 (-1/3.6), each twice."""
    embeddings, proxies = torch.tensor(EMBEDDINGS, dtype=torch.float64), torch.tensor(PROXIES, dtype=torch.float64)

    def energy(reduction: Reduction) -> float:
        return potential_field_energy(embeddings, LABELS, proxies, delta=0.5, alpha=2, reduction=reduction).item()

    active = 2 * (-1 / 0.8 + 1 / 0.08 - 1 / 3.6)
    assert energy("per_pair") == pytest.approx((active + 6 * 0.5**-2) / 12, abs=1e-9)
    assert energy("per_active_pair") == pytest.approx(active / 6, abs=1e-9)


@pytest.mark.parametrize("pairs_per_block", [1, 2**23])
def test_reductions_scale_the_same_gradient(pairs_per_block: int) -> None:
    gradients = {}
    for reduction in get_args(Reduction):
        embeddings = torch.tensor(EMBEDDINGS, dtype=torch.float64, requires_grad=True)
        proxies = torch.tensor(PROXIES, dtype=torch.float64)
        potential_field_energy(
            embeddings, LABELS, proxies, delta=0.5, alpha=2, reduction=reduction, pairs_per_block=pairs_per_block
        ).backward()
        assert embeddings.grad is not None
        gradients[reduction] = embeddings.grad
    for reduction, divisor in {"per_pair": 12, "per_active_pair": 6, "mean": 2}.items():
        assert torch.allclose(gradients[reduction] * divisor, gradients["sum"], rtol=1e-12)


def test_items_without_a_force_have_no_loss_per_active_pair_and_no_gradient() -> None:
    for reduction, value in (("per_active_pair", 0.0), ("per_pair", 0.2**-3)):
        embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)  # two classes, farther than delta
        loss = potential_field_energy(embeddings, LABELS, torch.zeros(2, 0, 2), delta=0.2, alpha=3, reduction=reduction)
        loss.backward()
        assert loss.item() == pytest.approx(value)
        assert embeddings.grad is not None
        assert embeddings.grad.abs().max() == 0
    alone = potential_field_energy(
        torch.ones(1, 2), LABELS[:1], torch.zeros(1, 0, 2), delta=0.2, alpha=3, reduction="per_pair"
    )
    assert alone.item() == 0


def test_default_is_the_mean_over_ordered_pairs() -> None:
    embeddings, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1])
    default, mean = (
        PotentialFieldLoss(3, 4, seed=1, proxies_per_class=2, **given) for given in ({}, {"reduction": "mean"})
    )
    assert default(embeddings, labels).item() == pytest.approx(
        mean(embeddings, labels).item() * 5 / (11 * 10), rel=1e-6
    )


def test_hand_checked_gradients() -> None:
    embeddings = torch.tensor(EMBEDDINGS, dtype=torch.float64, requires_grad=True)
    proxies = torch.tensor(PROXIES, dtype=torch.float64, requires_grad=True)
    potential_field_energy(embeddings, LABELS, proxies, delta=0.5, alpha=2, reduction="sum").backward()
    assert embeddings.grad is not None
    assert proxies.grad is not None
    assert embeddings.grad[0].tolist() == pytest.approx([2.5, -5.0], abs=1e-9)
    # -3360/27 and 3380/27, the decimals -124.4444 and 125.1852
    assert embeddings.grad[1].tolist() == pytest.approx([-3360 / 27, 3380 / 27], abs=1e-9)
    assert proxies.grad[0, 0].tolist() == pytest.approx([122.5, -120.0], abs=1e-9)
    assert (embeddings.grad.sum(0) + proxies.grad.sum((0, 1))).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pairs_per_block", [1, 40, 2**23])
@pytest.mark.parametrize("alpha", [0.0, 1.5, 4.0])
def test_equals_the_loop(dtype: torch.dtype, pairs_per_block: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize
    embeddings = unit(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=-1)
    embeddings[4] = embeddings[1]  # duplicates, of one class and of two
    embeddings[5] = embeddings[0]
    embeddings = embeddings.to(dtype)
    labels = torch.tensor([0, 2, 2, 1, 2, 1])
    proxies = unit(torch.randn(4, 2, 3, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    given = [embeddings.clone().requires_grad_(), proxies.clone().requires_grad_()]
    value = potential_field_energy(
        given[0], labels, given[1], delta=0.6, alpha=alpha, reduction="sum", pairs_per_block=pairs_per_block
    )
    exact = [embeddings.double().requires_grad_(), proxies.double().requires_grad_()]
    expected = _loop(exact[0], labels, exact[1], 0.6, alpha)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert value.dtype == dtype
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    value.backward()
    gradients = torch.autograd.grad(expected, exact)
    for mine, theirs in zip(given, gradients, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == dtype
        assert torch.allclose(mine.grad.double(), theirs, rtol=tolerance, atol=tolerance)


def test_gradient_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    proxies = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def energy(embeddings: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
        return potential_field_energy(
            embeddings, torch.tensor([0, 0, 1, 2, 1]), proxies, delta=1.5, alpha=3, reduction="mean", pairs_per_block=30
        )

    assert torch.autograd.gradcheck(energy, (embeddings, proxies))


def test_close_items_are_finite_and_exert_no_force() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    value = potential_field_energy(embeddings, LABELS, torch.zeros(2, 0, 2), delta=0.2, alpha=4, reduction="sum")
    value.backward()
    assert value.item() == pytest.approx(2e16, rel=1e-5)  # two ordered pairs at the smallest distance, 1e-4
    assert embeddings.grad is not None
    assert embeddings.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_module_normalises_and_its_proxies_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (PotentialFieldLoss(3, 4, seed=seed, proxies_per_class=2) for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.proxies_CME, second.proxies_CME)
    assert not torch.equal(first.proxies_CME, other.proxies_CME)
    assert first.proxies_CME.shape == (3, 2, 4)
    embeddings, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1])
    with torch.no_grad():
        second.proxies_CME.mul_(5)
    assert second(embeddings * 3, labels).item() == pytest.approx(first(embeddings, labels).item(), rel=1e-5)


def test_a_few_steps_pull_classes_together_and_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    free = torch.randn(24, 8, generator=generator).requires_grad_()
    labels = torch.arange(24) % 3
    loss = PotentialFieldLoss(3, 8, seed=0, proxies_per_class=4, delta=0.3, alpha=2)
    optimizer = torch.optim.Adam([{"params": [free]}, {"params": loss.parameters()}], lr=0.05)

    def gap() -> float:
        unit = torch.nn.functional.normalize(free.detach(), dim=-1)
        similarity, same = unit @ unit.T, labels[:, None] == labels
        return (similarity[same].mean() - similarity[~same].mean()).item()

    before = gap()
    for _ in range(150):
        optimizer.zero_grad()
        loss(free, labels).backward()
        optimizer.step()
    assert gap() > before + 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_I": torch.tensor([0, 2])}, r"labels reach from 0 to 2; expected \[0, 2\)"),
        ({"labels_I": torch.tensor([0.0, 1.0])}, "integers"),
        ({"labels_I": torch.tensor([0])}, "integers"),
        ({"proxies_CME": torch.zeros(2, 1, 3)}, r"expected \[I, E\]"),
        ({"delta": 0.0}, "delta"),
        ({"alpha": -1.0}, "alpha"),
        ({"reduction": "none"}, "one of per_pair, per_active_pair, mean, sum"),
    ],
)
def test_mistakes(change: dict, message: str) -> None:
    arguments = {
        "embeddings_IE": torch.tensor(EMBEDDINGS),
        "labels_I": LABELS,
        "proxies_CME": torch.tensor(PROXIES),
        "delta": 0.2,
        "alpha": 2.0,
        "reduction": "sum",
    }
    with pytest.raises(ValueError, match=message):
        potential_field_energy(**(arguments | change))
