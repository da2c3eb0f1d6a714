"""The family of dense InternVL3.5 checkpoints in Hugging Face format.

Declared choice: an image is one tile of the run's image size. The family's processor may divide a large image into up
to twelve tiles and add a thumbnail; here every image has the same number of tokens, (size / 28)^2 in the released
models: 64 at the paper's 224 pixels, 256 at the tower's native 448. At other sizes than 448 the tower interpolates its
position embeddings, as transformers does. Of a square image up to 448 the family's processor makes one tile, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import InternVLConfig

from saga_dist.data.prompts import QWEN_CHAT
from saga_dist.errors import ModelError
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.families.internvl.backbone import InternVLBackbone
from saga_dist.models.families.internvl.tower import InternVLTower
from saga_dist.models.model_files import ModelFiles
from saga_dist.types import EncoderTokens

IMAGE_TOKEN, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"


class InternVLFamily(CheckpointFamily):
    """Dense InternVL3.5 checkpoints (``InternVLForConditionalGeneration``), 1B to 38B; their names end in -HF."""

    name = InternVLTower.family
    architecture = "InternVLForConditionalGeneration"
    image_placeholder = f"{IMAGE_START}{IMAGE_TOKEN}{IMAGE_END}"
    chat_format = QWEN_CHAT
    config_class = InternVLConfig
    tower_class = InternVLTower
    backbone_class = InternVLBackbone
    # The vocabulary is Qwen3's, which includes the vision markers of Qwen's multimodal models.
    markers = (
        IMAGE_TOKEN,
        IMAGE_START,
        IMAGE_END,
        "<video>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
    )
    tower_prefixes: ClassVar[dict[str, str]] = {
        f"{prefix}{part}.": f"{part}."
        for part in ("vision_tower", "multi_modal_projector")
        for prefix in ("model.", "")
    }
    language_prefixes: ClassVar[dict[str, str]] = {
        "model.language_model.": "language_model.",
        "language_model.model.": "language_model.",
    }
    head_prefixes: ClassVar[dict[str, str]] = {"lm_head.": "head.", "language_model.lm_head.": "head."}

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        self._refuse_sliding_windows()
        if not float(1 / self._parsed.downsample_ratio).is_integer():
            raise ModelError(
                f"downsample_ratio = {self._parsed.downsample_ratio}",
                where=f"{files.name}/config.json",
                expected="1 / a whole number of patches per token side",
            )

    def image_inputs(self, tokens: EncoderTokens) -> dict[str, Any]:
        """Returns the images of one request to a serving engine: one [N, D] tensor per image, without grids."""
        return {"image": list(tokens.values_NW.detach().cpu().split(tokens.lengths))}

    def engine_prompt_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        """Returns the prompt without the start and end markers of its images, which the engine inserts itself."""
        markers = set(self.load_tokenizer().convert_tokens_to_ids([IMAGE_START, IMAGE_END]))
        return [token_id for token_id in prompt_ids if token_id not in markers]
