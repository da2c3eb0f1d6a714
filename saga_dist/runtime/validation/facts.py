"""Facts about a run that several checks read: its checkpoint's config.json and sizes, and its machines."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from saga_dist.config import STANDINS, RunConfig
from saga_dist.config.method import AUTO
from saga_dist.errors import ModelError
from saga_dist.models.checkpoint_sizes import UNKNOWN_SIZES, CheckpointSizes, checkpoint_sizes
from saga_dist.models.model_files import local_file
from saga_dist.models.released_shapes import released_files
from saga_dist.models.supported import supported_family
from saga_dist.runtime.build import model_path


def cluster_address(config: RunConfig) -> str:
    """Returns the address of the Ray cluster that the run joins; empty for a serial run or a Ray of the run's own."""
    if config.runtime.kind != "ray":
        return ""
    address = config.runtime.address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def joins_cluster(config: RunConfig) -> bool:
    """Returns True when the run joins a Ray cluster, whose nodes may have other files and devices than this machine."""
    return bool(cluster_address(config))


class RunFacts:
    """A configuration to validate, with facts that are read once.

    Args:
        config: the whole configuration.
        directory: the run directory, which need not exist.
        option: option of the command line that named the directory.
    """

    def __init__(self, config: RunConfig, directory: Path, *, option: str = "--run-dir") -> None:
        self.config, self.directory, self.option = config, directory, option

    @property
    def names_folder(self) -> bool:
        """True when ``model.path`` can only be a folder: neither a stand-in nor a hub name."""
        path = self.config.model.path
        return path not in STANDINS and (Path(path).expanduser().is_dir() or path.startswith(("/", ".", "~")))

    def is_elsewhere(self, path: str) -> bool:
        """Returns True when a folder is not on this machine and the run joins a cluster whose nodes may have it."""
        return joins_cluster(self.config) and not Path(path).expanduser().exists()

    @cached_property
    def model_folder(self) -> Path | None:
        """Folder of the checkpoint's config.json on this machine; None when it is not here."""
        path = local_file(model_path(self.config), "config.json", self.config.model.revision)
        return None if path is None else path.parent

    @cached_property
    def sizes(self) -> CheckpointSizes:
        """Sizes of the checkpoint; all are None where they are not known here or the family is the user's own."""
        if self.config.model.own_family:
            return UNKNOWN_SIZES
        try:
            config = self._checkpoint_config()
            family = self.config.model.family
            return checkpoint_sizes(config, supported_family(config, where="") if family == AUTO else family)
        except (OSError, ValueError, AttributeError, ModelError):  # check_model_folder says what is wrong
            return UNKNOWN_SIZES

    def _checkpoint_config(self) -> dict[str, Any]:
        """Returns the content of config.json, of a file on this machine or else as released under the model's name."""
        if self.model_folder is not None:
            content: dict[str, Any] = json.loads((self.model_folder / "config.json").read_text("utf-8"))
            return content
        return (released_files(self.config.model.path) or {}).get("config.json", {})
