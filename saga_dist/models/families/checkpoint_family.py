"""Base of families whose parts are modules of transformers: reads the configuration, loads tower, decoder, tokenizer.

A subclass sets the classes of the parts, and the prefixes of each part's tensors in a checkpoint.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from saga_dist.errors import ModelError
from saga_dist.models.encoder_folder import PREPROCESSING_NAME
from saga_dist.models.families.base import Family, TokenLayout, VisionTower
from saga_dist.models.families.preprocessing import load_processor
from saga_dist.models.model_files import INDEX_NAME, SINGLE_NAME, ModelFiles
from saga_dist.models.weights import fill, renamed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saga_dist.models.families.decoder import DecoderBackbone

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files that a tokenizer may need besides ``tokenizer_config.json``."""


class ModelTower(VisionTower):
    """A tower that wraps one module of transformers; the weights are uninitialised.

    Args:
        config: part of the checkpoint's configuration that describes the tower.
        preprocessing: path of ``preprocessor_config.json``.
        dtype: dtype of the weights.
        device: device of the weights.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    """Class of ``config``; its ``from_dict`` reads the result of ``describe``."""

    def __init__(
        self, config: PreTrainedConfig, preprocessing: Path, *, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        super().__init__()
        self.layout = self.layout_of(config)
        self.model = self._empty_model(config, dtype=dtype, device=device)
        self._processor = load_processor(preprocessing)

    @classmethod
    def rebuild(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> Self:
        """Returns a tower with uninitialised weights from its ``describe()`` and its preprocessing files."""
        config = cls.config_class.from_dict(description)
        return cls(config, folder / PREPROCESSING_NAME, dtype=dtype, device="cpu")

    @staticmethod
    @abstractmethod
    def layout_of(config: PreTrainedConfig) -> TokenLayout:
        """Returns the token layout that a configuration describes."""

    @abstractmethod
    def _empty_model(
        self, config: PreTrainedConfig, *, dtype: torch.dtype, device: str | torch.device
    ) -> PreTrainedModel:
        """Returns the module of transformers with uninitialised weights."""

    def enable_gradient_checkpointing(self) -> None:
        """Makes the backward pass recompute the activations of the layers instead of storing them."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def save_preprocessing(self, folder: Path) -> None:
        """Writes ``preprocessor_config.json`` into a folder."""
        self._processor.save_pretrained(folder)


class CheckpointFamily(Family):
    """A family whose parts are modules of transformers, in checkpoints of Hugging Face format."""

    config_class: ClassVar[type[PreTrainedConfig]]
    """Class of the whole checkpoint's configuration."""
    tower_class: ClassVar[type[ModelTower]]
    """Class of the tower."""
    backbone_class: ClassVar[type[DecoderBackbone]]
    """Class of the frozen language model."""
    tower_prefixes: ClassVar[dict[str, str]]
    """Prefixes of the tower's tensors in a checkpoint, each with its replacement in ``tower.model``."""
    language_prefixes: ClassVar[dict[str, str]]
    """Prefixes of the decoder's tensors in a checkpoint, each with its replacement in the backbone."""
    head_prefixes: ClassVar[dict[str, str]] = {"lm_head.": "head."}
    """Prefixes of the output layer's tensors in a checkpoint, each with its replacement in the backbone."""
    markers: ClassVar[tuple[str, ...]]
    """Image, video and vision tokens; those that the tokenizer does not have are ignored."""

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        try:
            self._parsed = self.config_class.from_dict(copy.deepcopy(config))
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"config.json cannot be used ({reason})", where=files.name) from error

    def _refuse_sliding_windows(self) -> None:
        """Raises ``ModelError`` for sliding-window layers.

        Replay needs the keys and values of every position, and a cache with a window drops old ones.
        """
        if "sliding_attention" in self._parsed.text_config.layer_types:
            raise ModelError(
                "the language model has sliding-window attention",
                where=f"{self.files.name}/config.json",
                expected="full attention in every layer",
                fix="set use_sliding_window to false, as in the released checkpoints",
            )

    @property
    def layout(self) -> TokenLayout:
        """Sizes of the encoder tokens."""
        return self.tower_class.layout_of(self._tower_config)

    @property
    def _tower_config(self) -> PreTrainedConfig:
        """Part of the configuration that describes the tower."""
        return self._parsed

    def _empty_tower(self, *, dtype: torch.dtype, device: str | torch.device) -> ModelTower:
        """Returns the tower with uninitialised weights."""
        preprocessing = self.files.file(PREPROCESSING_NAME)
        return self.tower_class(self._tower_config, preprocessing, dtype=dtype, device=device)

    def _empty_backbone(self, *, tied: bool, dtype: torch.dtype, device: str | torch.device) -> DecoderBackbone:
        """Returns the language model with uninitialised weights."""
        return self.backbone_class(self._parsed, self.layout, tied=tied, dtype=dtype, device=device)

    @classmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> ModelTower:
        """Returns a tower with uninitialised weights from its ``describe()`` and its preprocessing files."""
        return cls.tower_class.rebuild(description, folder, dtype=dtype)

    @property
    def parsed(self) -> PreTrainedConfig:
        """The checkpoint's configuration as read by transformers, with defaults."""
        return self._parsed

    @property
    def tied(self) -> bool:
        """True when the output layer is the transposed embedding table."""
        # A single weight file on the hub is not downloaded for this, because it holds all weights.
        has_index = self.files.find(INDEX_NAME) is not None
        is_readable = has_index or (self.files.revision is None and self.files.find(SINGLE_NAME) is not None)
        return self._tied_by_weights() if is_readable else bool(self._parsed.tie_word_embeddings)

    def with_config(self, config: dict[str, Any]) -> CheckpointFamily:
        """Returns the same family with another configuration, e.g. with fewer layers."""
        return type(self)(self.files, config)

    def empty_tower(self, device: str = "meta") -> ModelTower:
        """Returns the tower with uninitialised weights; on torch's meta device it takes no memory."""
        return self._empty_tower(dtype=torch.float32, device=device)

    def empty_backbone(
        self, device: str = "meta", *, dtype: torch.dtype = torch.float32, tied: bool | None = None
    ) -> DecoderBackbone:
        """Returns the frozen language model with uninitialised weights.

        Args:
            device: device of the weights; ``meta`` takes no memory.
            dtype: dtype of the weights.
            tied: True for no output layer of its own; None for the checkpoint's own setting.
        """
        backbone = self._empty_backbone(tied=self.tied if tied is None else tied, dtype=dtype, device=device)
        backbone.freeze()
        return backbone

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids of the ``markers`` that the tokenizer has, and of the image token."""
        added = self.load_tokenizer().get_added_vocab()
        ids = {added[marker] for marker in self.markers if marker in added}
        return tuple(sorted(ids | {int(self._parsed.image_token_id)}))

    def load_tower(self, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> ModelTower:
        """Returns the tower with the checkpoint's weights; the language model's weights are not read."""
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
        """Returns True when the embeddings are tied and the checkpoint has no output layer.

        As in transformers, an output layer in the checkpoint takes precedence over ``tie_word_embeddings``.
        """
        return bool(self._parsed.tie_word_embeddings) and not self.files.has_tensor(tuple(self.head_prefixes))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        folder: Path = self.files.file("tokenizer_config.json").parent
        for name in TOKENIZER_FILES:
            self.files.find(name)  # downloads a hub checkpoint's file into the same folder of the cache
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"the tokenizer cannot be loaded ({reason})", where=self.files.name) from error
