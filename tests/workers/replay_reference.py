"""End-to-end autograd through the untouched Hugging Face model on the pixel path, to which replay is compared.

One full sequence per completion, no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from workers.replay_world import (
    KL_LAYER,
    LENGTHS,
    World,
    relative_error,
)

from saga_dist.types import (
    Sampling,
    TokenGradients,
)


@dataclass
class Reference:
    token_gradients: list[torch.Tensor]
    tower_gradients: dict[str, torch.Tensor]
    losses: list[float]
    attention: list[tuple[torch.Tensor, torch.Tensor, float, int]]
    log_probs: list[list[torch.Tensor]]


def _sampling_log_prob(
    logits_V: torch.Tensor, token: int, sampling: Sampling, forbidden: Sequence[int]
) -> torch.Tensor:
    """Token by token: the most likely ones until top-p is reached, renormalised; no forbidden ones."""
    allowed_V = torch.ones_like(logits_V)
    allowed_V[list(forbidden)] = 0
    probs_V = (logits_V / sampling.temperature).exp() * allowed_V
    probs_V = probs_V / probs_V.sum()
    kept, mass = [], 0.0
    for index in probs_V.argsort(descending=True).tolist():
        if mass >= sampling.top_p:
            break
        kept.append(index)
        mass += probs_V[index].item()
    kept += [] if token in kept else [token]
    return (probs_V[token] / probs_V[kept].sum()).log()


def end_to_end(world: World, *, at_sampling: bool = False) -> Reference:
    """Plain autograd: pixels in, loss out, one full forward per completion."""
    model = world.reference
    model.zero_grad(set_to_none=True)
    processor = world.family.load_tower()
    tokenizer = world.family.load_tokenizer()
    groups = world.groups()
    total = sum(group.num_tokens for group in groups)
    result = Reference([], {}, [], [], [])
    for group, images in zip(groups, world.pairs, strict=True):
        pixels = processor.preprocess(images)
        text = world.prompt_text
        for length in pixels.lengths:
            text = text.replace("<|image_pad|>", "<|expanded|>" * length, 1)
        prompt = tokenizer.encode(text.replace("<|expanded|>", "<|image_pad|>"), add_special_tokens=False)
        grids_I3 = torch.tensor(pixels.grids)
        loss = torch.zeros(())
        tokens: list[torch.Tensor] = []

        def keep(module: Any, args: Any, output: Any, tokens: list[torch.Tensor] = tokens) -> None:
            for tensor in (output.pooler_output, *output.deepstack_features):
                tensor.retain_grad()
                tokens.append(tensor)

        hook = model.model.visual.register_forward_hook(keep)
        targets, all_log_probs = [], []
        for index, completion in enumerate(group.completions.token_ids):
            ids_1S = torch.tensor([prompt + list(completion)])
            output = model(
                input_ids=ids_1S,
                pixel_values=pixels.pixel_values,
                image_grid_thw=grids_I3,
                mm_token_type_ids=(ids_1S == model.config.image_token_id).int(),
                output_attentions=True,
            )
            log_probs_SV = output.logits[0].float().log_softmax(-1)
            positions = range(len(prompt) - 1, len(prompt) - 1 + len(completion))
            log_probs_T = torch.stack([log_probs_SV[p, y] for p, y in zip(positions, completion, strict=True)])
            if at_sampling:
                drawn, forbidden = group.completions.sampling, world.family.forbidden_token_ids
                log_probs_T = torch.stack(
                    [
                        _sampling_log_prob(log_probs_SV[p], y, drawn, forbidden)
                        for p, y in zip(positions, completion, strict=True)
                    ]
                )
            all_log_probs.append(log_probs_T.detach())
            loss = loss - float(group.advantages_G[index]) * log_probs_T.sum() / total
            masks = group.describes_a[index], group.describes_b[index]
            if group.rewards_G[index] == 1 and masks[0].any() and masks[1].any():
                attention_SS = output.attentions[KL_LAYER][0].detach().mean(0)
                targets.append(_targets(attention_SS, ids_1S[0] == model.config.image_token_id, masks, len(prompt)))
        hook.remove()
        loss.backward()
        parts = [
            sum(tensor.grad for tensor in tokens[level :: len(tokens) // len(LENGTHS)])
            for level in range(len(tokens) // len(LENGTHS))
        ]
        result.token_gradients.append(torch.cat(parts, dim=1))
        result.losses.append(loss.item())
        entropy = np.mean([sum((alpha * alpha.log()).sum().item() for alpha in pair) for pair in targets])
        means = [torch.stack([pair[image] for pair in targets]).mean(0) for image in range(2)]
        result.attention.append((means[0], means[1], float(entropy), len(targets)))
        result.log_probs.append(all_log_probs)
    result.tower_gradients = {name: parameter.grad for name, parameter in model.model.visual.named_parameters()}
    return result


def _targets(
    attention_SS: torch.Tensor, image_mask_S: torch.Tensor, masks: tuple[np.ndarray, np.ndarray], num_prompt: int
) -> list[torch.Tensor]:
    """Eq. 6 by hand: rows of the describing tokens, this image's columns, renormalised, mean over tokens."""
    columns = image_mask_S.nonzero()[:, 0].tolist()
    jump = next(i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + 1)
    result = []
    for image_columns, mask_T in zip((columns[:jump], columns[jump:]), masks, strict=True):
        rows = [attention_SS[num_prompt + t, image_columns] for t in np.flatnonzero(mask_T)]
        result.append(sum(row / row.sum() for row in rows) / len(rows))
    return result


def assert_gradients(
    results: list[TokenGradients], tower: dict[str, torch.Tensor], reference: Reference, levels: int
) -> None:
    for found, expected, loss in zip(results, reference.token_gradients, reference.losses, strict=True):
        assert found.values_NW.dtype == torch.float32
        assert found.values_NW.shape == expected.shape
        for part, expected_part in zip(
            found.values_NW.chunk(levels + 1, 1), expected.chunk(levels + 1, 1), strict=True
        ):
            assert expected_part.norm() > 0
            assert relative_error(part, expected_part) <= 1e-5
        assert found.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert tower.keys() == reference.tower_gradients.keys()
    # Biases of keys have no gradient but rounding (softmax ignores a shift): measured against the whole tower there.
    scale = torch.stack([gradient.norm() for gradient in reference.tower_gradients.values()]).norm().item()
    for name, expected in reference.tower_gradients.items():
        assert (tower[name] - expected).norm().item() <= 1e-5 * max(expected.norm().item(), 1e-2 * scale), name


def assert_attention(results: list[TokenGradients], reference: Reference) -> None:
    for found, (mean_a, mean_b, entropy, count) in zip(results, reference.attention, strict=True):
        assert found.num_attended == count == 2
        torch.testing.assert_close(found.attention_a_N, mean_a, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.attention_b_N, mean_b, rtol=1e-5, atol=1e-7)
        assert found.negative_entropy == pytest.approx(entropy, rel=1e-5)
