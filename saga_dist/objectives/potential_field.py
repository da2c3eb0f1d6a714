"""Potential Field loss (Bhatnagar and Ahuja, CVPR 2025, arXiv 2405.18560), implemented from the formula.

Embeddings and proxies are items of a potential field. Items of the same class attract each other when their distance
is at least ``delta``; items of different classes repel each other when their distance is below ``delta``:

    psi_att(d) = -delta^-alpha  if d < delta else -d^-alpha        psi_rep(d) = d^-alpha  if d < delta else delta^-alpha
    U = sum over ordered pairs r != z of embeddings and proxies of psi_att (same class) or psi_rep (different class)

With alpha = 4 and close items the terms reach 1e16, and d^2 = |r|^2 + |z|^2 - 2 r.z suffers from cancellation. So all
arithmetic is float64, for any dtype of the inputs. Value and gradient are computed together over blocks of rows of the
pair matrix, so that memory holds one block and not all pairs (1.2e8 for 743 classes with 15 proxies).
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from saga_dist.config.metric_params import Reduction

_SMALLEST_DISTANCE = 1e-4
"""Smallest distance used in the formula. Items closer than this have no gradient, because its direction is noise."""


def potential_field_energy(
    embeddings_IE: torch.Tensor,
    labels_I: torch.Tensor,
    proxies_CME: torch.Tensor,
    *,
    delta: float,
    alpha: float,
    reduction: Reduction,
    pairs_per_block: int = 2**23,
) -> torch.Tensor:
    """Returns the reduced energy of embeddings and proxies, a scalar in the dtype of the embeddings.

    The inputs are not normalised here.

    Args:
        embeddings_IE: [I, E], floating.
        labels_I: [I], integers in [0, C).
        proxies_CME: [C, M, E], floating; M may be 0.
        delta: positive distance at which attraction begins and repulsion ends.
        alpha: exponent, at least 0.
        reduction: see ``Reduction``.
        pairs_per_block: largest number of pairs in memory at the same time (8 bytes each, in a few arrays).

    Raises:
        ValueError: shapes, labels or parameters do not fit.

    Source: Potential Field, arXiv 2405.18560.
    """
    if embeddings_IE.ndim != 2 or proxies_CME.ndim != 3 or embeddings_IE.shape[1] != proxies_CME.shape[2]:
        shapes = f"embeddings {tuple(embeddings_IE.shape)}, proxies {tuple(proxies_CME.shape)}"
        raise ValueError(f"{shapes}; expected [I, E] and [C, M, E]")
    if not (delta > 0 and alpha >= 0 and pairs_per_block >= 1):
        raise ValueError(
            f"delta = {delta}, alpha = {alpha}, pairs_per_block = {pairs_per_block}; expected > 0, >= 0, >= 1"
        )
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction = {reduction!r}; expected one of {', '.join(get_args(Reduction))}")
    num_images, embedding_dim = embeddings_IE.shape
    num_classes, proxies_per_class, _ = proxies_CME.shape
    if labels_I.shape != (num_images,) or labels_I.is_floating_point() or num_images == 0:
        raise ValueError(
            f"labels are {labels_I.dtype} {tuple(labels_I.shape)}; expected integers [{num_images}], not empty"
        )
    lowest, highest = int(labels_I.min()), int(labels_I.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(f"labels reach from {lowest} to {highest}; expected [0, {num_classes})")
    items_SE = torch.cat([embeddings_IE.double(), proxies_CME.reshape(-1, embedding_dim).double()])
    proxy_labels = torch.arange(num_classes, device=labels_I.device).repeat_interleave(proxies_per_class)
    labels_S = torch.cat([labels_I.long(), proxy_labels])
    energy, active_energy, num_active = _PairEnergy.apply(
        items_SE, labels_S, float(delta), float(alpha), pairs_per_block
    )
    num_items = len(items_SE)
    reduced: torch.Tensor = {
        "per_pair": lambda: energy / max(1, num_items * (num_items - 1)),
        "per_active_pair": lambda: active_energy / num_active.clamp(min=1),
        "mean": lambda: energy / num_images,
        "sum": lambda: energy,
    }[reduction]()
    return reduced.to(embeddings_IE.dtype)


class PotentialFieldLoss(nn.Module):
    """Potential Field loss with its proxies; embeddings and proxies are l2-normalised before the energy is computed.

    Args:
        num_classes: C, number of training classes.
        embedding_dim: E, width of an embedding.
        seed: seed of the initial proxies.
        proxies_per_class: M, positive; the paper uses 15 (CUB, Cars) and 2 (SOP).
        delta: positive distance; the paper searched [0.1, 0.3] and does not publish the final value.
        alpha: exponent, at least 0; the paper searched 0 to 6 and does not publish the final value.
        reduction: see ``Reduction``.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        seed: int,
        proxies_per_class: int = 15,
        delta: float = 0.2,
        alpha: float = 3.0,
        reduction: Reduction = "per_pair",
    ) -> None:
        super().__init__()
        self.delta, self.alpha, self.reduction = delta, alpha, reduction
        generator = torch.Generator().manual_seed(seed)
        proxies_CME = torch.randn(num_classes, proxies_per_class, embedding_dim, generator=generator)
        self.proxies_CME = nn.Parameter(nn.functional.normalize(proxies_CME, dim=-1))

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        """Returns the scalar loss of floating embeddings [I, E] with integer labels [I] in [0, C)."""
        return potential_field_energy(
            nn.functional.normalize(embeddings_IE, dim=-1),
            labels_I,
            nn.functional.normalize(self.proxies_CME, dim=-1),
            delta=self.delta,
            alpha=self.alpha,
            reduction=self.reduction,
        )


class _PairEnergy(torch.autograd.Function):
    """Computes U and dU/d(items) in one pass over blocks of rows of the pair matrix.

    Returns U, its part from the pairs that exert a force, and their number. Both energies have the same gradient,
    because the potential of every other pair is constant.
    """

    @staticmethod
    def forward(
        ctx: Any, items_SE: torch.Tensor, labels_S: torch.Tensor, delta: float, alpha: float, pairs_per_block: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_items = items_SE.shape[0]
        block = max(1, pairs_per_block // num_items)
        energy, active_energy = items_SE.new_zeros(()), items_SE.new_zeros(())
        num_active = labels_S.new_zeros(())
        gradient_SE = torch.empty_like(items_SE) if ctx.needs_input_grad[0] else None
        squares_S = items_SE.square().sum(-1)
        columns_S = torch.arange(num_items, device=items_SE.device)
        for start in range(0, num_items, block):
            rows = slice(start, min(start + block, num_items))
            distances_RS = squares_S[rows, None] + squares_S - 2 * (items_SE[rows] @ items_SE.T)
            same_RS = labels_S[rows, None] == labels_S
            other_RS = columns_S[rows, None] != columns_S
            energy_RS, force_RS = _pair_terms(distances_RS, same_RS, delta, alpha)
            force_RS = torch.where(other_RS, force_RS, 0.0)
            active_RS = force_RS != 0
            energy += torch.where(other_RS, energy_RS, 0.0).sum()
            active_energy += torch.where(active_RS, energy_RS, 0.0).sum()
            num_active += active_RS.sum()
            if gradient_SE is not None:
                # The factor is 4, because U has each unordered pair twice, and d(d^2)/dr = 2 (r - z).
                weighted_RE = force_RS.sum(-1, keepdim=True) * items_SE[rows] - force_RS @ items_SE
                gradient_SE[rows] = 4 * weighted_RE
        if gradient_SE is not None:
            ctx.save_for_backward(gradient_SE)
        ctx.mark_non_differentiable(num_active)
        return energy, active_energy, num_active

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_SE,) = ctx.saved_tensors
        return (grad_outputs[0] + grad_outputs[1]) * gradient_SE, None, None, None, None


def _pair_terms(
    squared_RS: torch.Tensor, same_RS: torch.Tensor, delta: float, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the potential of each pair and its derivative with respect to the squared distance, [R, S] each."""
    clamped_RS = squared_RS.clamp(min=_SMALLEST_DISTANCE**2)
    power_RS = clamped_RS.pow(-alpha / 2)
    near_RS = squared_RS < delta**2
    active_RS = same_RS != near_RS  # same class and far, or different classes and near
    sign_RS = torch.where(same_RS, -1.0, 1.0).to(power_RS)
    energy_RS = sign_RS * torch.where(active_RS, power_RS, delta**-alpha)
    has_gradient_RS = active_RS & (squared_RS > _SMALLEST_DISTANCE**2)
    return energy_RS, torch.where(has_gradient_RS, -sign_RS * (alpha / 2) * power_RS / clamped_RS, 0.0)
