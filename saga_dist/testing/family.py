"""Contract check of model families (``model.family``).

The check does not compare tokens, positions and log-probabilities with those of the released model;
``tests/models/test_family_contract.py`` does so for the built-in families.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from saga_dist.errors import DataError, ModelError, TokenError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families.base import Family, FrozenBackbone, PixelBatch, PromptLayout, VisionTower
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.families.kv_cache import TOKENS_PER_ALLOCATION
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.pooler import Pooler
from saga_dist.types import EncoderTokens
from saga_dist.utils.registry import is_import_path

SIDE = 5
"""Tokens per side of the test images."""


def check_model_family(family_class: type[Family], checkpoint: str | Path) -> None:
    """Checks a family on one of its checkpoints, on the CPU in float32.

    - Tower: layout, shape of the tokens, gradients of all parameters, independence of the images of a batch, gradient
      checkpointing, the last blocks where the tower names them, saving and loading.
    - Prompt: positions, image placeholders, inputs of the vLLM engine.
    - Language model: it is frozen and passes gradients to all levels of the tokens; prefill in pieces, packed and
      padded forward passes, and decoding give equal results.

    Args:
        family_class: the class that ``model.family`` names.
        checkpoint: folder of a whole model in Hugging Face format, best a tiny one with random weights.

    Raises:
        AssertionError: the family does not meet its contract; the message says in which point.
    """
    files = ModelFiles(checkpoint)
    family = family_class(files, files.json("config.json"))
    tower, backbone = family.load_tower(), family.load_backbone()
    pixels = tower.preprocess(_images(family, 2))
    _check_tower(family, tower, pixels)
    _check_gradient_checkpointing(family)
    _check_last_blocks(tower)
    _check_saved_encoder(family, tower)
    prompt = _check_prompt(family, backbone, pixels)
    _check_engine_inputs(family, tower, pixels)
    _check_frozen(backbone, prompt, tower(pixels).detach())
    _check_prefill(backbone, prompt, tower(pixels).detach())
    _check_group_forward(backbone, prompt, tower(pixels).detach())
    _check_decoding(family, backbone, prompt)


def _images(family: Family, count: int, *, seed: int = 0) -> list[np.ndarray]:
    side = SIDE * family.layout.pixels_per_token
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def _assert_close(
    found: torch.Tensor, expected: torch.Tensor, what: str, *, rtol: float = 1e-4, atol: float = 1e-4
) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def _prompt_ids(family: Family) -> list[int]:
    image, chat = family.image_placeholder, family.chat_format
    text = f"{chat.before_user}{image} and {image}: same species?{chat.after_user}"
    ids: list[int] = family.load_tokenizer().encode(text, add_special_tokens=False)
    return ids


# ---------------------------------------------------------------- the tower


def _check_tower(family: Family, tower: VisionTower, pixels: PixelBatch) -> None:
    layout = family.layout
    assert tower.layout == layout, "the tower's layout is not the family's"
    patches = SIDE * layout.merge_size
    assert pixels.grids == ((1, patches, patches),) * 2, f"grids are {pixels.grids}, not (frames, rows, columns)"
    assert pixels.lengths == (layout.num_tokens(pixels.grids[0]),) * 2, "lengths are not those of the grids"
    values_NW = tower(pixels)
    assert values_NW.shape == (sum(pixels.lengths), layout.wire_width), (
        f"tokens of shape {tuple(values_NW.shape)}, not [N, (1 + L) * D] = {(sum(pixels.lengths), layout.wire_width)}"
    )
    values_NW.square().sum().backward()
    still = [name for name, parameter in tower.named_parameters() if parameter.grad is None]
    assert not still, f"no gradient reaches {still[0]} ({len(still)} parameters in all)"
    alone_NW = tower(tower.preprocess(_images(family, 2)[:1]))
    _assert_close(alone_NW, values_NW[: pixels.lengths[0]], "an image has other tokens alone than in a batch")
    side = SIDE * layout.pixels_per_token
    for unfit in (np.zeros((side, side - 1, 3), np.uint8), np.zeros((side, side, 3), np.float32)):
        try:
            tower.preprocess([unfit])
        except DataError:
            continue
        raise AssertionError(f"preprocess took a {unfit.dtype} image of shape {unfit.shape}; expected a DataError")


def _check_gradient_checkpointing(family: Family) -> None:
    gradients = []
    for checkpointed in (False, True):
        tower = family.load_tower().train()
        if checkpointed:
            tower.enable_gradient_checkpointing()
        tower(tower.preprocess(_images(family, 2))).square().sum().backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    for plain, again in zip(*gradients, strict=True):
        _assert_close(again, plain, "gradient checkpointing changes a gradient", rtol=1.3e-6, atol=1e-5)


def _check_last_blocks(tower: VisionTower) -> None:
    """Checks ``last_blocks`` of a tower that defines it; others refuse ``model.train = "last:N"`` in one line."""
    try:
        parts = tower.last_blocks(1)
    except ModelError:
        return
    named = {id(parameter) for part in parts for parameter in part.parameters()}
    every = {id(parameter) for parameter in tower.parameters()}
    assert named, "last_blocks(1) names no parameter"
    assert named < every, "last_blocks(1) names all parameters of the tower, or others"
    try:
        tower.last_blocks(len(every) + 1)
    except ModelError:
        return
    raise AssertionError("last_blocks took more blocks than the tower has; expected a ModelError")


def _check_saved_encoder(family: Family, tower: VisionTower) -> None:
    pooler = Pooler(width=tower.layout.width, embedding_dim=16, seed=5)
    encoder = Encoder(tower, pooler, image_size=SIDE * family.layout.pixels_per_token)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(folder)
        loaded = load(folder, family=tower.family if is_import_path(tower.family) else "")
    assert loaded.tower.family == tower.family, f"family {tower.family!r} makes a tower of {loaded.tower.family!r}"
    assert loaded.tower.layout == tower.layout, "the rebuilt tower has another layout"
    images = _images(family, 3)
    np.testing.assert_array_equal(
        loaded.encode(images), encoder.encode(images), "a saved encoder gives other embeddings: see rebuild_tower"
    )


# ---------------------------------------------------------------- prompts


def _check_prompt(family: Family, backbone: FrozenBackbone, pixels: PixelBatch) -> PromptLayout:
    ids = _prompt_ids(family)
    prompt = backbone.build_layout(ids, pixels.grids)
    num_tokens = len(ids) - 2 + sum(pixels.lengths)
    assert prompt.token_ids_S.shape == (num_tokens,), (
        f"{len(prompt.token_ids_S)} positions; expected {num_tokens}, one per text token and encoder token"
    )
    assert prompt.position_ids_RS.shape[1] == num_tokens, "not one rotary position for every token"
    lengths = tuple(image.stop - image.start for image in prompt.images)
    assert lengths == pixels.lengths, f"images of {lengths} positions for {pixels.lengths} tokens"
    assert prompt.next_position > int(prompt.position_ids_RS[:, -1].max()), "next_position is not behind the prompt"
    image_ids = set(prompt.token_ids_S[prompt.image_positions()].tolist())
    assert image_ids <= set(family.forbidden_token_ids), "forbidden_token_ids lacks the image token"
    try:
        backbone.build_layout(ids, pixels.grids[:1])
    except TokenError:
        return prompt
    raise AssertionError("build_layout took two placeholders for one image; expected a TokenError")


def _check_engine_inputs(family: Family, tower: VisionTower, pixels: PixelBatch) -> None:
    record = EncoderTokens("p", tower(pixels).detach(), pixels.lengths, pixels.grids, family.layout.num_deepstack, 0)
    inputs = family.image_inputs(record)
    assert set(inputs) == {"image"}, f"image_inputs has the modalities {sorted(inputs)}, not image"
    ids, engine_ids = _prompt_ids(family), family.engine_prompt_ids(_prompt_ids(family))
    left_out = set(ids) - set(engine_ids)
    assert left_out <= set(family.forbidden_token_ids), "engine_prompt_ids leaves text out"


# ---------------------------------------------------------------- the language model


def _check_frozen(backbone: FrozenBackbone, prompt: PromptLayout, values_NW: torch.Tensor) -> None:
    torch.nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules()), "the backbone can be put into training mode"
    digest = backbone.digest()
    values_NW = values_NW.requires_grad_()
    past = backbone.prefill(prompt, values_NW, slice(0, len(prompt.token_ids_S)))
    hidden_TD = backbone.forward_completions(past, torch.tensor([[9, 30, 12]]), prompt.next_position).hidden_GTD[0]
    backbone.logits(hidden_TD).log_softmax(-1)[:, 17].sum().backward()
    changed = [
        name for name, parameter in backbone.named_parameters() if parameter.requires_grad or parameter.grad is not None
    ]
    assert not changed, f"{changed[0]} of the frozen backbone takes a gradient ({len(changed)} parameters in all)"
    assert backbone.digest() == digest, "a backward pass changed the backbone"
    assert values_NW.grad is not None, "no gradient reaches the encoder tokens"
    layout = backbone.layout
    for level, gradient_ND in enumerate((layout.main(values_NW.grad), *layout.levels(values_NW.grad))):
        assert gradient_ND.norm() > 0, f"no gradient reaches level {level} of the encoder tokens"


def _check_prefill(backbone: FrozenBackbone, prompt: PromptLayout, values_NW: torch.Tensor) -> None:
    start, stop, end = prompt.images[0].start, prompt.images[-1].stop, len(prompt.token_ids_S)
    with torch.no_grad():
        whole = backbone.prefill(prompt, values_NW, slice(0, end))
        pieces: KeyValues | None = backbone.prefill(prompt, None, slice(0, start)) if start else None
        pieces = backbone.prefill(prompt, values_NW, slice(start, stop), pieces)
        pieces = backbone.prefill(prompt, None, slice(stop, end), pieces)
    for layer, (found, expected) in enumerate(zip(pieces, whole, strict=True)):
        for part, expected_part in zip(found, expected, strict=True):
            _assert_close(part, expected_part, f"layer {layer}: prefill in pieces differs from all at once")


def _check_group_forward(backbone: FrozenBackbone, prompt: PromptLayout, values_NW: torch.Tensor) -> None:
    sequences = [torch.tensor(ids) for ids in ([9, 30, 12, 40, 11], [33, 21], [17, 10, 9])]
    padded_GT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    first, probe_layer = prompt.next_position, backbone.num_layers - 1
    with torch.no_grad():
        past = backbone.prefill(prompt, values_NW, slice(0, len(prompt.token_ids_S)))
        padded = backbone.forward_completions(past, padded_GT, first, probe_layer=probe_layer)
        packed = backbone.forward_packed(past, sequences, first, probe_layer=probe_layer)
    expected_RD = torch.cat([row_TD[: len(ids)] for row_TD, ids in zip(padded.hidden_GTD, sequences, strict=True)])
    _assert_close(packed.hidden_RD, expected_RD, "forward_packed differs from forward_completions")
    for run, name in ((padded, "forward_completions"), (packed, "forward_packed")):
        assert run.probe is not None, f"{name} gave no attention probe"
        for row, ids in enumerate(sequences):
            rows_RK = run.probe.rows(row, torch.arange(len(ids)))[:, : len(prompt.token_ids_S) + len(ids)]
            _assert_close(rows_RK.sum(-1), torch.ones(len(ids)), f"{name}: attention does not sum to 1")


def _check_decoding(family: Family, backbone: FrozenBackbone, prompt: PromptLayout) -> None:
    """Compares decoding token by token, while rows are dropped, with forward passes of whole sequences."""
    counts, num_tokens = [2, 3], TOKENS_PER_ALLOCATION + 5
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prefixes = [
            backbone.prefill(prompt, values_NW, slice(0, len(prompt.token_ids_S)))
            for values_NW in torch.randn(
                2, len(prompt.image_positions()), family.layout.wire_width, generator=generator
            )
        ]
        ids_BT = torch.randint(0, 20, (sum(counts), num_tokens), generator=generator)
        whole = [
            backbone.forward_completions(prefixes[prefix], ids_BT[row : row + 1], prompt.next_position).hidden_GTD[0]
            for row, prefix in enumerate([0, 0, 1, 1, 1])
        ]
        cache, alive = backbone.start_decode(prefixes, counts), list(range(5))
        # Step to the rows of the cache that are dropped after it.
        leaving = {2: [0, 3], 5: [], TOKENS_PER_ALLOCATION + 2: [1]}
        for step in range(num_tokens):
            hidden_BD = backbone.decode_step(cache, ids_BT[alive, step], prompt.next_position + step)
            expected_BD = torch.stack([whole[row][step] for row in alive])
            _assert_close(hidden_BD, expected_BD, f"decode_step {step} differs from the whole sequence", atol=1e-5)
            if step in leaving:
                alive = [alive[row] for row in cache.drop(leaving[step])]
        assert alive == [4, 2], f"rows {alive} are left, not [4, 2]"
        assert cache.drop([0, 1]) == [], "a cache without rows still has some"
