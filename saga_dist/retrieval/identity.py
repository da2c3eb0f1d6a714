"""Identity of the encoder that made an embedding, so that embeddings of two encoders are never mixed in one index.

It is read from the JSON files of a saved encoder, without torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saga_dist.errors import CheckpointError, ModelError

_CONTENT = ("model.safetensors", "preprocessor_config.json")
_UNIMPORTANT = ("versions",)
"""Keys of an encoder's config.json that do not change an embedding."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Identity of an encoder, stored with embeddings and indexes."""

    sha256: str
    """Digest of weights, preprocessing and configuration, without the versions of the packages that wrote them."""
    family: str
    """Model family of the tower."""
    image_size: int
    """Side in pixels of the square to which every image is resized."""
    preprocessing: dict[str, Any]
    """The family's own preprocessing settings."""
    folder: str
    """Absolute path of the encoder when its identity was read; two identities may differ in it."""

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values from which ``from_json`` restores the identity."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object, *, where: str) -> ModelIdentity:
        """Returns the identity that JSON values describe.

        Args:
            values: result of ``to_json``.
            where: file of the values, for the error.

        Raises:
            CheckpointError: the values do not describe an identity.
        """
        try:
            identity = cls(**values)  # type: ignore[arg-type]
        except TypeError as error:
            raise CheckpointError(f"does not say which model ({error})", where=where, fix="make it again") from error
        if not isinstance(identity.sha256, str) or not isinstance(identity.folder, str):
            raise CheckpointError("does not say which model", where=where, fix="make it again")
        return identity

    def refuse_other(self, other: ModelIdentity, *, where: str) -> None:
        """Checks that ``other`` is the same encoder.

        Args:
            other: identity to compare with.
            where: name of the embeddings or index that this encoder made, for the error.

        Raises:
            ModelError: ``other`` is another encoder.
        """
        if other.sha256 != self.sha256:
            raise ModelError(
                f"made with model {self.sha256[:12]}, not with {other.sha256[:12]} ({other.folder})",
                where=where,
                expected="the same encoder",
                fix="give that model, or embed and index the images again with this one",
            )


def read_identity(folder: Path) -> ModelIdentity:
    """Returns the identity of a saved encoder from the digests in its manifest, which are only checked by loading it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        preprocessing = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        digests = json.loads((folder / "manifest.json").read_text("utf-8"))["sha256"]
        config = {key: value for key, value in config.items() if key not in _UNIMPORTANT}
        parts = [json.dumps(config, sort_keys=True), *(digests[name] for name in _CONTENT)]
        return ModelIdentity(
            sha256=hashlib.sha256("\0".join(parts).encode()).hexdigest(),
            family=config["family"],
            image_size=config["image_size"],
            preprocessing=preprocessing,
            folder=str(folder.resolve()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"cannot be read ({error})", where=str(folder), expected="a saved encoder", fix="copy the folder again"
        ) from error
