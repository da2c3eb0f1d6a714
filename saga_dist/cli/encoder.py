"""Loading an encoder and showing progress, for the commands that use a trained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

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
    from saga_dist.models.devices import require_device
    from saga_dist.models.encoder import load

    require_device(device)
    return load(folder, device=device, family=family)


def progress_bar() -> Progress:
    """Returns a progress bar on standard error that is erased when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
