"""Packs a configuration for a cluster: TOML in a ConfigMap, in which every path exists in the pods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import tomli_w

from saga_dist.config import STANDINS, RunConfig, parse_config
from saga_dist.config.find import VOCABULARIES, find_config
from saga_dist.errors import ConfigError

CONFIG_FOLDER = "/config"
"""Mount point of the ConfigMap in the pods."""
WEIGHTS_FOLDER = "/weights"
"""Mount point of the volume with model weights."""
DATA_FOLDER = "/data"
"""Mount point of the volume with the data set."""
RUNS_FOLDER = "/runs"
"""Mount point of the volume with run directories."""
RUN_FILE = "run.toml"
"""Name of the configuration file in the ConfigMap."""

_MAX_BYTES = 1_000_000
"""Largest size of the ConfigMap; etcd rejects more than 1 MiB."""


@dataclass(frozen=True, slots=True)
class PackedConfig:
    """Files of the ConfigMap, and the volumes that the run needs besides it."""

    files: dict[str, str]
    """Content of each file, by name."""
    needs_weights: bool
    """True when the run needs the volume with model weights."""
    needs_data: bool
    """True when the run needs the volume with the data set."""
    hub_cache: bool
    """True when the model has a hub name; it is then loaded offline from a Hugging Face cache in the weights volume."""


def pack(config: RunConfig) -> PackedConfig:
    """Returns the files that the pods mount at ``/config``: the configuration, and the lists that it refers to.

    A vocabulary or class list with a relative path is read on this machine and packed; one with an absolute path must
    exist in the pods. Only keys that the file or the overrides set are written. Defaults come from the container image,
    which may have another version, and ``config.json`` in the run directory records them.

    Raises:
        ConfigError: the run cannot run on a cluster of its own, or a path does not exist there.
    """
    if config.runtime.kind != "ray":
        raise _refused("runtime.kind", config.runtime.kind, 'expected "ray"; a cluster has nothing to do otherwise')
    if config.runtime.address:
        raise _refused(
            "runtime.address", config.runtime.address, 'leave it ""; the run joins the cluster it is sent to'
        )
    if config.checkpoint.mirror.startswith("file://"):
        _require_below("checkpoint.mirror", config.checkpoint.mirror.removeprefix("file://"), RUNS_FOLDER)
    files: dict[str, str] = {}
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree.get("run", {}).pop("directory", None)  # the entrypoint sets it
    tree.setdefault("runtime", {})["pin_roles"] = True  # the pods of a role have its resource, and mount its volumes
    data = tree.get("data", {})
    needs_data = config.data.layout != "birds"
    if needs_data:
        _require_below("data.root", config.data.root, DATA_FOLDER)
        if data.get("manifest"):
            _require_below("data.manifest", data["manifest"], DATA_FOLDER)
        for key in ("train_classes", "test_classes"):
            if data.get(key):
                data[key] = _pack_file(files, f"data.{key}", data[key])
    if config.prompt.vocabulary.endswith(".toml"):
        words = config.prompt.vocabulary
        tree["prompt"]["vocabulary"] = _pack_file(files, "prompt.vocabulary", words)
    path = config.model.path
    is_folder = path.startswith(("/", ".", "~"))
    if is_folder:
        _require_below("model.path", path, WEIGHTS_FOLDER)
    parse_config(tree, where=RUN_FILE)  # the packed configuration must be valid after all replacements
    files[RUN_FILE] = to_toml(tree)
    if (size := sum(len(text.encode()) for text in files.values())) > _MAX_BYTES:
        raise ConfigError(
            f"configuration and lists have {size} bytes",
            where="ConfigMap",
            expected=f"at most {_MAX_BYTES}",
            fix=f"put the lists into the data volume and name them by their path below {DATA_FOLDER}",
        )
    needs_weights = path not in STANDINS
    return PackedConfig(files, needs_weights, needs_data, hub_cache=needs_weights and not is_folder)


def to_toml(tree: Mapping[str, Any]) -> str:
    """Returns the TOML text of a tree of strings, booleans, finite numbers, lists of these, and nested tables.

    Raises:
        ConfigError: a value has another type, or a string cannot be encoded as UTF-8.
    """
    try:
        text = tomli_w.dumps(tree)
        text.encode()
        json.dumps(tree, allow_nan=False)  # TOML has NaN and infinity, but no configuration accepts them
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a value cannot be written as TOML ({error})", where=RUN_FILE) from error
    return text


def _pack_file(files: dict[str, str], key: str, path: str) -> str:
    """Returns the path of a file in the pods.

    A file with a relative path, the user's or a shipped one, is read and added to ``files``; an absolute path is
    returned unchanged.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not path or path.startswith("/"):
        return path
    name = key + (".toml" if path.endswith(".toml") else ".txt")
    try:
        files[name] = find_config(path, folders=VOCABULARIES).read_text("utf-8")
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no such file, or not readable"
        raise ConfigError(
            f"{key} = {path!r} cannot be read here ({reason})",
            where="configuration",
            fix="a relative path is read here and packed into the ConfigMap; an absolute one must exist in the pods",
        ) from error
    return f"{CONFIG_FOLDER}/{name}"


def _require_below(key: str, path: str, folder: str) -> None:
    """Checks that a path is below a mount point.

    Raises:
        ConfigError: it is not.
    """
    if ".." in PurePosixPath(path).parts or not PurePosixPath(path).is_relative_to(folder):
        raise _refused(
            key, path, f"expected a path below {folder}, where the pods see the volume; set {key}={folder}/…"
        )


def _refused(key: str, value: str, why: str) -> ConfigError:
    return ConfigError(f'{key} = "{value}" on a cluster: {why}', where="configuration")
