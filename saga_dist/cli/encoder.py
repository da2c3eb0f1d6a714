"""Loading an encoder, for the commands that use a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saga_dist.cli.progress import waiting

if TYPE_CHECKING:
    from saga_dist.models.encoder import Encoder


def load_encoder(folder: Path, device: str, family: str) -> Encoder:
    """Returns the encoder in a folder, loaded on a device.

    Args:
        folder: folder of the encoder.
        device: torch device, e.g. ``cpu`` or ``cuda``.
        family: import path of the encoder's model family, where it is not built in.

    Raises:
        ConfigError: the device cannot be used.
        CheckpointError: a file is missing or altered, or the format has another version.
        ModelError: the family is not supported.
    """
    with waiting(f"loading the encoder {folder}"):
        from saga_dist.models.encoder import load

        return load(folder, device=device, family=family)
