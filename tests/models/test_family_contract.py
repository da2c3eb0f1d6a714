"""What every family must hold, against the untouched Hugging Face model of the same checkpoint.

What needs no such model (the language model's ways to run agree, gradient checkpointing, prefill in pieces, ...) is in
``saga_dist.testing.family``, which ``tests/testing/test_check_family.py`` runs on every family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saga_dist.errors import DataError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family, PixelBatch
from saga_dist.models.pooler import Pooler
from saga_dist.standin.random_families import IMAGE_SIZE

TEXTS = {
    "images_first": "{image} and {image}: same species?",
    "text_first": "Which is which? Bird 1: {image} Bird 2: {image}",
}


@pytest.fixture(scope="module")
def family(family_checkpoint: Path) -> Family:
    return resolve_family(family_checkpoint)


@pytest.fixture(scope="module")
def reference(family_checkpoint: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(family_checkpoint, dtype=torch.float32)
    assert type(model).__name__ == resolve_family(family_checkpoint).architecture
    return model.eval()


def images(count: int, size: int = IMAGE_SIZE, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def grids_of(family: Family, pixels: PixelBatch) -> dict[str, torch.Tensor]:
    """What Hugging Face's models want beside pixels."""
    return {} if family.name == "internvl" else {"image_grid_thw": torch.tensor(pixels.grids)}


def reference_tokens(reference: Any, family: Family, pixels: PixelBatch) -> torch.Tensor:
    """The model's own image features in wire layout."""
    output = reference.get_image_features(pixel_values=pixels.pixel_values, **grids_of(family, pixels))
    levels = output.deepstack_features if family.layout.num_deepstack else ()
    return torch.cat([torch.cat(tuple(level)) for level in (output.pooler_output, *levels)], dim=1)


def processor_text(family: Family, text: str) -> str:
    """The prompt as the family's processor wants it: InternVL's puts the markers around images itself."""
    return text.replace("<img>", "").replace("</img>", "") if family.name == "internvl" else text


def prompt_text(family: Family, order: str) -> str:
    body = TEXTS[order].format(image=family.image_placeholder)
    return family.chat_format.before_user + body + family.chat_format.after_user


# ---------------------------------------------------------------- the tower


@pytest.mark.parametrize("size", [IMAGE_SIZE, 64])
def test_tower_gives_the_image_features_and_gradients_of_transformers(
    family: Family, reference: Any, size: int
) -> None:
    """At 64 pixels InternVL's position table is interpolated, and the windows of Qwen2.5-VL are all of one length."""
    tower = family.load_tower()
    pixels = tower.preprocess(images(3, size))
    assert pixels.grids == ((1, size // 8, size // 8),) * 3
    assert pixels.lengths == ((size // 16) ** 2,) * 3
    values_NW, expected_NW = tower(pixels), reference_tokens(reference, family, pixels)
    torch.testing.assert_close(values_NW, expected_NW, rtol=1e-5, atol=1e-5)
    assert expected_NW.std() > 1e-3
    reference.zero_grad(set_to_none=True)
    weights_NW = torch.randn(values_NW.shape, generator=torch.Generator().manual_seed(0))
    (values_NW * weights_NW).sum().backward()
    (expected_NW * weights_NW).sum().backward()
    expected = tower_parameters(reference, family)
    assert {name for name, _ in tower.model.named_parameters()} == set(expected)
    for name, parameter in tower.model.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4 * scale + 1e-5, msg=name)


def tower_parameters(reference: Any, family: Family) -> dict[str, nn.Parameter]:
    if family.name != "internvl":
        return dict(reference.model.visual.named_parameters())
    wanted = ("vision_tower.", "multi_modal_projector.")
    return {name: value for name, value in reference.model.named_parameters() if name.startswith(wanted)}


def test_layout_is_the_width_of_the_tokens(family: Family, reference: Any) -> None:
    layout = family.layout
    assert layout.width == reference.config.text_config.hidden_size == 128
    assert layout.num_deepstack == {"qwen3_vl": 2, "qwen2_5_vl": 0, "internvl": 0}[family.name]
    assert layout.pixels_per_token == 16
    pixels = family.load_tower().preprocess(images(1))
    assert reference_tokens(reference, family, pixels).shape == (layout.num_tokens(pixels.grids[0]), layout.wire_width)


def test_preprocessing_equals_the_familys_own_processor(family: Family, family_checkpoint: Path) -> None:
    from transformers import AutoImageProcessor, AutoProcessor

    pictures = images(2)
    pixels = family.load_tower().preprocess(pictures)
    alone = AutoImageProcessor.from_pretrained(family_checkpoint, backend="pil")
    expected = alone(images=pictures, return_tensors="pt", input_data_format="channels_last")
    assert torch.equal(pixels.pixel_values, expected["pixel_values"])
    processor = AutoProcessor.from_pretrained(family_checkpoint)
    text = processor_text(family, prompt_text(family, "images_first"))
    expected = processor(text=[text], images=pictures, return_tensors="pt", input_data_format="channels_last")
    torch.testing.assert_close(pixels.pixel_values, expected["pixel_values"], rtol=0, atol=1e-6)
    if family.name != "internvl":
        assert torch.equal(torch.tensor(pixels.grids), expected["image_grid_thw"])


def test_unfit_images_are_refused(family: Family) -> None:
    tower = family.load_tower()
    with pytest.raises(DataError, match="80 x 72 pixels; expected sides that are multiples of 16"):
        tower.preprocess([*images(1), np.zeros((80, 72, 3), np.uint8)])
    with pytest.raises(DataError, match="float32 array"):
        tower.preprocess([np.zeros((80, 80, 3), np.float32)])


# ---------------------------------------------------------------- the language model


@pytest.mark.parametrize("order", list(TEXTS))
def test_prompts_and_positions_are_those_of_transformers(
    family: Family, reference: Any, family_checkpoint: Path, order: str
) -> None:
    """Token ids from the family's processor, positions as they reach the rotation of the untouched model."""
    from transformers import AutoProcessor

    pictures, text = images(2), prompt_text(family, order)
    processor = AutoProcessor.from_pretrained(family_checkpoint)
    inputs = processor(
        text=[processor_text(family, text)], images=pictures, return_tensors="pt", input_data_format="channels_last"
    )
    ids_1S = torch.cat([inputs["input_ids"], torch.tensor([[9]])], dim=1)  # one generated token
    heard: list[torch.Tensor] = []
    hook = reference.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: heard.append(kwargs.get("position_ids", args[-1] if args else None)),
        with_kwargs=True,
    )
    pixels = family.load_tower().preprocess(pictures)
    extra = grids_of(family, pixels)
    if extra:
        extra["mm_token_type_ids"] = (ids_1S == reference.config.image_token_id).int()
    with torch.no_grad():
        reference(input_ids=ids_1S, pixel_values=pixels.pixel_values, **extra)
    hook.remove()
    expected_RS = heard[0].reshape(-1, ids_1S.shape[1])

    prompt_ids = family.load_tokenizer().encode(text, add_special_tokens=False)
    prompt = family.load_backbone().build_layout(prompt_ids, pixels.grids)
    assert torch.equal(prompt.token_ids_S, ids_1S[0, :-1])
    assert torch.equal(prompt.position_ids_RS, expected_RS[:, :-1])
    assert {prompt.next_position} == set(expected_RS[:, -1].tolist())
    assert torch.equal(prompt.image_positions(), (ids_1S[0] == reference.config.image_token_id).nonzero()[:, 0])


def test_tower_and_mergers_learn_and_nothing_of_the_backbone_does(family: Family) -> None:
    """Gradients of a real log-likelihood, then a real optimizer step over all that would train."""
    tower, backbone = family.load_tower().train(), family.load_backbone()
    before = backbone.digest()
    pixels = tower.preprocess(images(2))
    prompt_ids = family.load_tokenizer().encode(prompt_text(family, "images_first"), add_special_tokens=False)
    prompt = backbone.build_layout(prompt_ids, pixels.grids)
    past = backbone.prefill(prompt, tower(pixels), slice(0, len(prompt.token_ids_S)))
    hidden_TD = backbone.forward_completions(past, torch.tensor([[9, 30, 12]]), prompt.next_position).hidden_GTD[0]
    backbone.logits(hidden_TD).log_softmax(-1)[:, 17].sum().backward()

    assert list(backbone.parameters())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())
    start = {name: parameter.detach().clone() for name, parameter in tower.named_parameters()}
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None and parameter.grad.norm() > 0, name
    merging = [name for name in start if "merger" in name or "projector" in name]
    levels = {name.split(".")[2] for name in merging if "deepstack_merger_list" in name}
    assert merging and levels == {str(level) for level in range(family.layout.num_deepstack)}
    torch.optim.AdamW([*tower.parameters(), *backbone.parameters()], lr=1e-3, weight_decay=0.1).step()
    assert backbone.digest() == before
    assert all(not torch.equal(parameter, start[name]) for name, parameter in tower.named_parameters())


def test_an_output_layer_in_the_checkpoint_counts_whatever_the_configuration_says(
    family_checkpoint: Path, tmp_path: Path
) -> None:
    """As in transformers; some released configurations do not say that input and output tables differ."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    folder = tmp_path / "model"
    shutil.copytree(family_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    if not any("lm_head" in name for name in tensors):
        (table,) = (value for name, value in tensors.items() if name.endswith("embed_tokens.weight"))
        save_file({**tensors, "lm_head.weight": 2 * table}, folder / "model.safetensors", metadata={"format": "pt"})
    backbone = resolve_family(folder).load_backbone()
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert backbone.head is not None
    assert torch.equal(backbone.head.weight, reference.lm_head.weight)
    assert torch.equal(backbone.language_model.embed_tokens.weight, reference.get_input_embeddings().weight)
    assert not torch.equal(reference.lm_head.weight, reference.get_input_embeddings().weight)


def test_bfloat16_weights_keep_float32_rotations(family: Family) -> None:
    backbone, tower = family.load_backbone(dtype=torch.bfloat16), family.load_tower(dtype=torch.bfloat16)
    assert {parameter.dtype for part in (backbone, tower) for parameter in part.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for part in (backbone, tower) for buffer in part.buffers()} == {torch.float32}
    assert all(buffer.isfinite().all() for part in (backbone, tower) for buffer in part.buffers())
    assert tower(tower.preprocess(images(1))).dtype == torch.bfloat16


# ---------------------------------------------------------------- the deployed encoder


def test_saved_encoders_give_the_same_embeddings(family: Family, tmp_path: Path) -> None:
    tower = family.load_tower()
    encoder = Encoder(tower, Pooler(width=tower.layout.width, embedding_dim=32, seed=5), image_size=IMAGE_SIZE)
    encoder.save(tmp_path)
    pictures = [*images(3), *images(1, 200, seed=4)]
    loaded = load(tmp_path)
    assert loaded.tower.family == family.name
    assert loaded.tower.layout == tower.layout
    embeddings_IE = loaded.encode(pictures)
    np.testing.assert_array_equal(embeddings_IE, encoder.encode(pictures))
    with torch.no_grad():
        expected_IE = encoder.pooler(tower.layout.main(tower(tower.preprocess(images(3)))).split(25)).embeddings_IE
    np.testing.assert_allclose(embeddings_IE[:3], expected_IE, atol=1e-6)
    assert np.linalg.matrix_rank(embeddings_IE) == 4
