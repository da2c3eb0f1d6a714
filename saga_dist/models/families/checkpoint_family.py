"""What all families do alike with a checkpoint: parse its configuration, fill tower and language model, read its words.

A family says which tensors belong to which part and how the empty parts are built.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saga_dist.errors import ModelError
from saga_dist.models.families.base import Family, VisionTower
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.models.model_files import INDEX_NAME, SINGLE_NAME, ModelFiles
from saga_dist.models.weights import fill, renamed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")


class ModelTower(VisionTower):
    """A tower around one module of transformers, whose weights are the tower's."""

    model: PreTrainedModel


class CheckpointFamily(Family):
    """A family whose parts are modules of transformers, in a checkpoint of Hugging Face's format."""

    tower_prefixes: ClassVar[dict[str, str]]
    """Where the tower's tensors are in a checkpoint, and what they are called in ``tower.model``."""
    language_prefixes: ClassVar[dict[str, str]]
    """The same for the decoder, in the backbone."""
    head_prefixes: ClassVar[dict[str, str]] = {"lm_head.": "head."}
    markers: ClassVar[tuple[str, ...]]
    """Tokens around and in place of images and videos, as far as the tokenizer knows them."""

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        try:
            self._parsed = self._config_class().from_dict(copy.deepcopy(config))
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"config.json cannot be used ({reason})", where=files.name) from error

    def _refuse_sliding_windows(self) -> None:
        """Replay keeps the keys of every position, which a layer with a window would throw away."""
        if "sliding_attention" in self._parsed.text_config.layer_types:
            raise ModelError(
                "the language model has sliding-window attention",
                where=f"{self.files.name}/config.json",
                expected="full attention in every layer",
                fix="set use_sliding_window to false, as in the released checkpoints",
            )

    @staticmethod
    @abstractmethod
    def _config_class() -> type[PreTrainedConfig]:
        """Returns the family's configuration class in transformers."""

    @abstractmethod
    def _empty_tower(self, *, dtype: torch.dtype, device: str | torch.device) -> ModelTower:
        """Returns the tower, its weights not yet set."""

    @abstractmethod
    def _empty_backbone(self, *, tied: bool, dtype: torch.dtype, device: str | torch.device) -> DecoderBackbone:
        """Returns the language model, its weights not yet set."""

    @property
    def parsed(self) -> PreTrainedConfig:
        """The checkpoint's configuration as transformers reads it, defaults filled in."""
        return self._parsed

    @property
    def tied(self) -> bool:
        """True when the output layer is the transposed embedding table."""
        # A hub's only file is not fetched to look: it is all of the weights.
        has_index = self.files.find(INDEX_NAME) is not None
        look = has_index or (self.files.revision is None and self.files.find(SINGLE_NAME) is not None)
        return self._tied_by_weights() if look else bool(self._parsed.tie_word_embeddings)

    def shaped_like(self, config: dict[str, Any]) -> CheckpointFamily:
        """Returns the same family with another configuration, e.g. of fewer layers."""
        return type(self)(self.files, config)

    def empty_tower(self, device: str = "meta") -> ModelTower:
        """Returns the tower, its weights not set; on torch's meta device it takes no memory."""
        return self._empty_tower(dtype=torch.float32, device=device)

    def empty_backbone(
        self, device: str = "meta", *, dtype: torch.dtype = torch.float32, tied: bool | None = None
    ) -> DecoderBackbone:
        """Returns the frozen language model, its weights not set; ``tied`` (None: as it is) leaves no output layer."""
        backbone = self._empty_backbone(tied=self.tied if tied is None else tied, dtype=dtype, device=device)
        backbone.freeze()
        return backbone

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids of every image, video and vision marker the tokenizer knows, and of the image token."""
        added = self.load_tokenizer().get_added_vocab()
        known = {added[marker] for marker in self.markers if marker in added}
        return tuple(sorted(known | {int(self._parsed.image_token_id)}))

    def load_tower(self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> ModelTower:
        """Returns the tower with the checkpoint's weights; the language model's are not read."""
        tower = self._empty_tower(dtype=dtype, device=device)
        tensors = self.files.tensors(tuple(self.tower_prefixes))
        fill(tower.model, renamed(tensors, self.tower_prefixes), where=self.files.name)
        return tower

    def load_backbone(
        self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> DecoderBackbone:
        """Returns the frozen language model; the tower's weights are not read."""
        tied = self._tied_by_weights()
        backbone = self._empty_backbone(tied=tied, dtype=dtype, device=device)
        prefixes = self.language_prefixes if tied else self.language_prefixes | self.head_prefixes
        fill(backbone, renamed(self.files.tensors(tuple(prefixes)), prefixes), where=self.files.name)
        backbone.freeze()
        return backbone

    def _tied_by_weights(self) -> bool:
        """As transformers does: an output layer that is in the checkpoint counts, whatever the configuration says."""
        return bool(self._parsed.tie_word_embeddings) and not self.files.has_tensor(tuple(self.head_prefixes))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        folder: Path = self.files.file("tokenizer_config.json").parent
        for name in TOKENIZER_FILES:
            self.files.find(name)  # puts a hub checkpoint's files next to each other in the cache
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"the tokenizer cannot be loaded ({reason})", where=self.files.name) from error
