"""Qwen3-VL: DeepStack tower, interleaved three-axis rotary positions, Qwen3 language model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saga_dist.data.prompts import QWEN_CHAT, ChatFormat
from saga_dist.errors import ModelError
from saga_dist.models.families.base import Family, TokenLayout
from saga_dist.models.families.qwen3_vl_backbone import Qwen3VLBackbone
from saga_dist.models.families.qwen3_vl_tower import Qwen3VLTower, vision_layout
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.weights import fill, renamed
from saga_dist.types import EncoderTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

TOWER_PREFIXES = {"model.visual.": "", "visual.": ""}
"""Where the tower's tensors are in a checkpoint; the second as in files written by early versions."""
LANGUAGE_PREFIXES = {"model.language_model.": "language_model.", "language_model.": "language_model."}
HEAD_PREFIXES = {"lm_head.": "head."}
MARKERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")


class Qwen3VLFamily(Family):
    """Dense Qwen3-VL checkpoints (``Qwen3VLForConditionalGeneration``)."""

    name: ClassVar[str] = Qwen3VLTower.family
    architecture: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    image_placeholder: ClassVar[str] = "<|vision_start|><|image_pad|><|vision_end|>"
    chat_format: ClassVar[ChatFormat] = QWEN_CHAT

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        from transformers import Qwen3VLConfig

        super().__init__(files, config)
        try:
            self._parsed: Qwen3VLConfig = Qwen3VLConfig.from_dict(copy.deepcopy(config))
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"config.json cannot be used ({reason})", where=files.name) from error
        if self._parsed.vision_config.out_hidden_size != self._parsed.text_config.hidden_size:
            raise ModelError(
                f"vision_config.out_hidden_size = {self._parsed.vision_config.out_hidden_size}",
                where=f"{files.name}/config.json",
                expected=f"text_config.hidden_size = {self._parsed.text_config.hidden_size}",
            )

    @property
    def layout(self) -> TokenLayout:
        """Sizes of the encoder tokens."""
        return vision_layout(self._parsed.vision_config)

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids of every image, video and vision marker the tokenizer knows."""
        config = self._parsed
        named = {
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        }
        added = self.load_tokenizer().get_added_vocab()
        return tuple(sorted(named | {added[marker] for marker in MARKERS if marker in added}))

    def load_tower(self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Qwen3VLTower:
        """Returns the tower with the checkpoint's weights; the language model's are not read."""
        tower = Qwen3VLTower(
            self._parsed.vision_config, self.files.file("preprocessor_config.json"), dtype=dtype, device=device
        )
        tensors = self.files.tensors(tuple(TOWER_PREFIXES))
        fill(tower.model, renamed(tensors, TOWER_PREFIXES), where=self.files.name)
        return tower

    def load_backbone(
        self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Qwen3VLBackbone:
        """Returns the frozen language model; the tower's weights are not read."""
        backbone = Qwen3VLBackbone(self._parsed, self.layout, dtype=dtype, device=device)
        prefixes = LANGUAGE_PREFIXES if backbone.head is None else LANGUAGE_PREFIXES | HEAD_PREFIXES
        fill(backbone, renamed(self.files.tensors(tuple(prefixes)), prefixes), where=self.files.name)
        backbone.freeze()
        return backbone

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        folder = self.files.file("tokenizer_config.json").parent
        for name in ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
            self.files.find(name)  # puts a hub checkpoint's files next to each other in the cache
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"the tokenizer cannot be loaded ({reason})", where=self.files.name) from error

    def vllm_multi_modal_data(self, tokens: EncoderTokens) -> dict[str, Any]:
        """Returns the images of one vLLM request: wire-layout embeddings and their patch grids."""
        grids_I3 = torch.tensor(tokens.grids, dtype=torch.int64)
        return {"image": {"image_embeds": tokens.values_NW.detach().cpu(), "image_grid_thw": grids_I3}}

    @classmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> Qwen3VLTower:
        """Returns a tower from ``Qwen3VLTower.describe`` and preprocessing files, its weights not yet set."""
        from transformers.models.qwen3_vl import Qwen3VLVisionConfig

        config = Qwen3VLVisionConfig.from_dict(description)
        return Qwen3VLTower(config, folder / "preprocessor_config.json", dtype=dtype, device="cpu")
