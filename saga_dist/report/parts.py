"""The parts of a run that a page may lack, with the reason why each is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from saga_dist.data.image_sets import Splits
from saga_dist.data.prompts import ChatFormat, render_prompt
from saga_dist.errors import UserError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.placement import checked_device
from saga_dist.objectives.spans import Decoder
from saga_dist.report.sources import RunFiles
from saga_dist.report.viewer import TrainingImages
from saga_dist.runtime.build import build_family, build_prompt, build_splits


@dataclass
class RunParts:
    """The parts of a run that may be missing. Each is loaded at most once, when first used."""

    run: RunFiles
    """Files of the run."""
    device: str
    """Device of the encoder."""
    notes: dict[str, str] = field(default_factory=dict)
    """Part (``images``, ``model``, ``tokenizer``, ``attention``) to the reason why it is missing."""

    @cached_property
    def splits(self) -> Splits | None:
        """The images; None, with a note, when they cannot be read."""
        try:
            return build_splits(self.run.config.data, seed=self.run.config.run.seed)
        except UserError as error:
            self.notes["images"] = f"The images cannot be read: {error}."
            return None

    @property
    def pictures(self) -> TrainingImages | None:
        """The images of recorded pairs, with their training augmentation; None when the images cannot be read."""
        return None if self.splits is None else TrainingImages(self.run.config, self.splits.train)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The run's encoder; None, with a note, when it is missing or damaged."""
        if not self.run.has_model:
            self.notes["model"] = "The run has not written its encoder (model/) yet."
            return None
        device = checked_device(self.device)  # outside of the try: a wrong option ends the command
        try:
            return load(self.run.path, device=device, family=self.run.config.model.own_family)
        except UserError as error:
            self.notes["model"] = f"The encoder cannot be loaded: {error}."
            return None

    @cached_property
    def tokenizer(self) -> Decoder | None:
        """The MLLM's tokenizer, to split completions into tokens; None, with a note, when it cannot be loaded."""
        try:
            return build_family(self.run.config).load_tokenizer()
        except UserError as error:
            self.notes["tokenizer"] = f"Completions are not split into tokens: {error}."
            return None

    @cached_property
    def prompt(self) -> str:
        """The prompt of every pair, with a mark in place of each image; without a chat format when there is no MLLM."""
        try:
            chat = build_family(self.run.config).chat_format
        except UserError:
            chat = ChatFormat("", "")
        return render_prompt(build_prompt(self.run.config), image_a="⟦image 1⟧", image_b="⟦image 2⟧", chat=chat)

    def notes_on(self, *parts: str) -> str:
        """Returns the notes on these parts, one sentence after the other; empty when none is missing."""
        return " ".join(self.notes[part] for part in parts if part in self.notes)
