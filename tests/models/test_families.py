"""Families against transformers itself: tokens, positions, loading, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saga_dist.config.registries import MODEL_FAMILIES
from saga_dist.errors import DataError, ModelError, TokenError
from saga_dist.models.families import load_family_class, resolve_family
from saga_dist.models.families.key_values import KeyValues
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import SUPPORTED_FAMILIES
from saga_dist.standin.checkpoint import write_random_checkpoint
from saga_dist.types import EncoderTokens


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("families"), seed=7, tower_depth=3, deepstack=(0, 2), layers=3
    )


@pytest.fixture(scope="module")
def reference(deep_checkpoint: Path) -> Any:
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(deep_checkpoint, dtype=torch.float32).eval()


def _images(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [((80, 80),) * 3, ((80, 80), (48, 64), (16, 80))])
def test_tower_gives_the_tokens_and_gradients_of_transformers(
    deep_checkpoint: Path, reference: Any, sizes: tuple[tuple[int, int], ...]
) -> None:
    tower = resolve_family(deep_checkpoint).load_tower()
    pixels = tower.preprocess(_images(*sizes))
    assert pixels.lengths == tuple(rows * columns // 256 for rows, columns in sizes)
    values_NW = tower(pixels)
    reference.zero_grad(set_to_none=True)
    output = reference.model.visual(pixels.pixel_values, grid_thw=torch.tensor(pixels.grids), return_dict=True)
    expected_NW = torch.cat([output.pooler_output, *output.deepstack_features], dim=1)
    torch.testing.assert_close(values_NW, expected_NW, rtol=1e-5, atol=1e-6)
    weights_NW = torch.randn(values_NW.shape, generator=torch.Generator().manual_seed(0))
    (values_NW * weights_NW).sum().backward()
    (expected_NW * weights_NW).sum().backward()
    expected = dict(reference.model.visual.named_parameters())
    for name, parameter in tower.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_wire_layout_is_main_tokens_then_deepstack_levels(deep_checkpoint: Path) -> None:
    layout = resolve_family(deep_checkpoint).layout
    assert (layout.width, layout.num_deepstack, layout.wire_width, layout.pixels_per_token) == (128, 2, 384, 16)
    assert layout.num_tokens((1, 10, 6)) == 15
    values_NW = torch.arange(2 * 384).reshape(2, 384)
    assert torch.equal(layout.main(values_NW), values_NW[:, :128])
    first, second = layout.levels(values_NW)
    assert torch.equal(first, values_NW[:, 128:256])
    assert torch.equal(second, values_NW[:, 256:])


def test_preprocessing_equals_the_processor_where_it_does_not_resize(deep_checkpoint: Path) -> None:
    from transformers import AutoImageProcessor

    (image,) = _images((80, 80))
    processor = AutoImageProcessor.from_pretrained(deep_checkpoint, backend="pil")
    expected = processor(images=[image], return_tensors="pt")
    pixels = resolve_family(deep_checkpoint).load_tower().preprocess([image])
    assert pixels.grids == ((1, 10, 10),)
    assert torch.equal(pixels.pixel_values, expected["pixel_values"])


def test_preprocessing_never_resizes(deep_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(deep_checkpoint, folder)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config["size"] = {"shortest_edge": 65536, "longest_edge": 16777216}  # as in the released checkpoints
    path.write_text(json.dumps(config))
    tower = resolve_family(folder).load_tower()
    assert tower.preprocess(_images((80, 80), (48, 80))).grids == ((1, 10, 10), (1, 6, 10))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((80, 72, 3), np.uint8), r"80 x 72 pixels; expected sides that are multiples of 16"),
        (np.zeros((80, 80, 3), np.float32), r"float32 array of shape \(80, 80, 3\); expected uint8"),
        (np.zeros((80, 80, 4), np.uint8), r"uint8 array of shape \(80, 80, 4\)"),
    ],
)
def test_unfit_images_are_refused(tiny_checkpoint: Path, image: np.ndarray, message: str) -> None:
    tower = resolve_family(tiny_checkpoint).load_tower()
    with pytest.raises(DataError, match=message):
        tower.preprocess([np.zeros((80, 80, 3), np.uint8), image])


@pytest.mark.parametrize("text_first", [False, True])
def test_positions_are_those_of_transformers(deep_checkpoint: Path, reference: Any, text_first: bool) -> None:
    family = resolve_family(deep_checkpoint)
    body = f"red {family.image_placeholder} or {family.image_placeholder} blue?"
    ids = family.load_tokenizer().encode("compare them: " + body if text_first else body, add_special_tokens=False)
    prompt = family.load_backbone().build_layout(ids, ((1, 4, 10), (1, 8, 6)))
    mask_S = prompt.token_ids_S == reference.config.image_token_id
    expected_3S, delta = reference.model.get_rope_index(
        prompt.token_ids_S[None],
        mm_token_type_ids=mask_S[None].int(),
        image_grid_thw=torch.tensor([[1, 4, 10], [1, 8, 6]]),
    )
    assert torch.equal(prompt.position_ids_RS, expected_3S[:, 0])
    assert prompt.next_position == len(prompt.token_ids_S) + int(delta)
    assert [image.stop - image.start for image in prompt.images] == [10, 12]
    assert torch.equal(prompt.image_positions(), mask_S.nonzero()[:, 0])


def test_prompt_needs_one_placeholder_per_image(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    ids = family.load_tokenizer().encode(family.image_placeholder, add_special_tokens=False)
    with pytest.raises(TokenError, match="2 images; expected 1"):
        family.load_backbone().build_layout(ids, ((1, 10, 10),) * 2)


def test_reading_piece_by_piece_equals_reading_at_once(deep_checkpoint: Path) -> None:
    family = resolve_family(deep_checkpoint)
    backbone = family.load_backbone()
    ids = family.load_tokenizer().encode(f"which? {family.image_placeholder}!", add_special_tokens=False)
    prompt = backbone.build_layout(ids, ((1, 10, 10),))
    values_NW = torch.randn(25, 384, generator=torch.Generator().manual_seed(1))
    end, start = len(prompt.token_ids_S), prompt.images[0].start
    whole = backbone.prefill(prompt, values_NW, slice(0, end))
    pieces: KeyValues = backbone.prefill(prompt, None, slice(0, start))
    pieces = backbone.prefill(prompt, values_NW, slice(start, end - 2), pieces)
    pieces = backbone.prefill(prompt, None, slice(end - 2, end), pieces)
    for layer, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(layer[0], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer[1], expected[1], rtol=1e-5, atol=1e-6)


def test_backbone_is_frozen_for_good(tiny_checkpoint: Path) -> None:
    backbone = resolve_family(tiny_checkpoint).load_backbone()
    torch.nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_digest_sees_one_bit(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    backbone, again = family.load_backbone(), family.load_backbone()
    digest = backbone.digest()
    assert digest == again.digest()
    assert len(digest) == 64
    weight = backbone.language_model.norm.weight
    with torch.no_grad():
        weight.view(torch.int32)[5] ^= 1
    assert backbone.digest() != digest


def _log_probs_of_nothing_but_text(folder: Path) -> torch.Tensor:
    family = resolve_family(folder)
    backbone = family.load_backbone()
    ids_1T = torch.tensor([[9, 12, 30, 11]])
    prompt = backbone.build_layout([8, 9], ())
    past = backbone.prefill(prompt, None, slice(0, 2))
    return backbone.logits(backbone.forward_completions(past, ids_1T, 2).hidden_GTD[0])


def test_untied_heads_and_shards_load(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tied = _log_probs_of_nothing_but_text(tiny_checkpoint)
    tensors["lm_head.weight"] = 2 * tensors["model.language_model.embed_tokens.weight"]
    parts = {
        "model-00001-of-00002.safetensors": {name: value for name, value in tensors.items() if ".visual." in name},
        "model-00002-of-00002.safetensors": {name: value for name, value in tensors.items() if ".visual." not in name},
    }
    (folder / "model.safetensors").unlink()
    for name, part in parts.items():
        save_file(part, folder / name)
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))

    torch.testing.assert_close(_log_probs_of_nothing_but_text(folder), 2 * tied)
    # Only the shards that are needed are touched: either half loads without the other.
    (folder / "model-00002-of-00002.safetensors").unlink()
    resolve_family(folder).load_tower()
    with pytest.raises(ModelError, match=r"has no model-00002-of-00002.safetensors"):
        resolve_family(folder).load_backbone()


def test_only_the_asked_tensors_are_read(tiny_checkpoint: Path) -> None:
    names = [name for name, _ in ModelFiles(tiny_checkpoint).tensors(("model.visual.",))]
    assert names
    assert all(name.startswith("model.visual.") for name in names)


def test_bfloat16_weights_keep_float32_rotations(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    backbone, tower = family.load_backbone(dtype=torch.bfloat16), family.load_tower(dtype=torch.bfloat16)
    assert {parameter.dtype for part in (backbone, tower) for parameter in part.parameters()} == {torch.bfloat16}
    assert backbone.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert tower.model.rotary_pos_emb.inv_freq.dtype == torch.float32
    assert tower(tower.preprocess(_images((80, 80)))).dtype == torch.bfloat16


def test_gradient_checkpointing_changes_no_gradient(deep_checkpoint: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        tower = resolve_family(deep_checkpoint).load_tower().train()
        if checkpointed:
            tower.enable_gradient_checkpointing()
        tower(tower.preprocess(_images((80, 80), (80, 80)))).square().sum().backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    for plain, checkpointed_grad in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed_grad, plain)


def test_strings_ids_and_vllm_input(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    tokenizer = family.load_tokenizer()
    markers = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert {tokenizer.convert_tokens_to_ids(marker) for marker in markers} <= set(family.forbidden_token_ids)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in family.forbidden_token_ids
    record = EncoderTokens("p", torch.zeros(50, 256), (25, 25), ((1, 10, 10),) * 2, 1, 0)
    image = family.image_inputs(record)["image"]
    assert image["image_embeds"].shape == (50, 256)
    assert image["image_grid_thw"].tolist() == [[1, 10, 10], [1, 10, 10]]


def test_the_light_list_of_families_is_the_real_one() -> None:
    families = {name: load_family_class(name) for name in MODEL_FAMILIES.builtin}
    assert {name: family.architecture for name, family in families.items()} == SUPPORTED_FAMILIES
    assert all(family.name == name for name, family in families.items())


def _edited(tiny_checkpoint: Path, tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "edited"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_unsupported_families_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    moe = {"model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"]}
    with pytest.raises(ModelError) as caught:
        resolve_family(_edited(tiny_checkpoint, tmp_path, **moe))
    assert "'qwen3_vl_moe' is not supported; expected qwen3_vl (Qwen3VLForConditionalGeneration)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_architectures_and_sizes_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="architecture Other is not supported"):
        resolve_family(_edited(tiny_checkpoint, tmp_path / "a", architectures=["Other"]))
    vision = json.loads((tiny_checkpoint / "config.json").read_text())["vision_config"]
    with pytest.raises(ModelError, match=r"out_hidden_size = 64; expected text_config.hidden_size = 128"):
        resolve_family(_edited(tiny_checkpoint, tmp_path / "b", vision_config={**vision, "out_hidden_size": 64}))


def test_missing_and_damaged_files_are_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such folder"):
        resolve_family(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config.json"):
        resolve_family(tmp_path)
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model.safetensors: cannot be read") as caught:
        resolve_family(folder).load_tower()
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        resolve_family(folder).load_tower()
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: cannot be read .*; expected a JSON object"):
        resolve_family(folder)


def test_a_missing_tensor_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.visual.merger.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"misses tensor merger.norm.weight \(1 in all\)"):
        resolve_family(folder).load_tower()
    resolve_family(folder).load_backbone()


def test_hub_names_are_looked_up_at_their_revision(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = set()

    def download(repository: str, name: str, *, revision: str) -> str:
        asked.add((repository, revision))
        path = tiny_checkpoint / name
        if not path.exists():
            raise EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    family = resolve_family("some-body/some-model", "abc123")
    family.load_tower()
    family.load_backbone()
    assert family.load_tokenizer().encode("<|im_end|>", add_special_tokens=False)
    assert asked == {("some-body/some-model", "abc123")}

    def offline(repository: str, name: str, *, revision: str) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ModelError, match=r"some-body/some-model: is not a folder, and config.json is neither on this"):
        resolve_family("some-body/some-model")
