"""The configuration as it travels: TOML in a ConfigMap, every path in it one that exists in the pods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tomli_w

from saga_dist.config import STANDINS, RunConfig, parse_config
from saga_dist.errors import ConfigError

CONFIG_FOLDER = "/config"
WEIGHTS_FOLDER = "/weights"
DATA_FOLDER = "/data"
RUNS_FOLDER = "/runs"
RUN_FILE = "run.toml"

_MAX_BYTES = 1_000_000  # etcd refuses more than 1 MiB in one ConfigMap


@dataclass(frozen=True, slots=True)
class TravellingConfig:
    """What the ConfigMap holds, by file name, and which volumes the run needs beside it."""

    files: dict[str, str]
    needs_weights: bool
    needs_data: bool
    hub_cache: bool
    """True when the model has a hub name: it is then looked up in the weights volume, offline."""


def pack(config: RunConfig) -> TravellingConfig:
    """Returns the files that the pods mount at ``/config``: the resolved configuration and the lists that it names.

    A relative path of a vocabulary or class list is a file here and travels along; an absolute one lies in the pods.
    Only what file and overrides say is written down: defaults come from the image, so that the two may differ in age,
    and ``config.json`` in the run directory says what they were.

    Raises:
        ConfigError: the run cannot happen on a cluster made for it, or a path means nothing there.
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
    tree.get("run", {}).pop("directory", None)  # the entrypoint names it
    tree.setdefault("runtime", {})["pin_roles"] = True  # pods of a role offer its resource, and mount what it needs
    data = tree.get("data", {})
    needs_data = config.data.layout != "birds"
    if needs_data:
        _require_below("data.root", config.data.root, DATA_FOLDER)
        if data.get("manifest"):
            _require_below("data.manifest", data["manifest"], DATA_FOLDER)
        for key in ("train_classes", "test_classes"):
            if data.get(key):
                data[key] = _carry(files, f"data.{key}", data[key])
    if config.prompt.vocabulary.endswith(".toml"):
        tree["prompt"]["vocabulary"] = _carry(files, "prompt.vocabulary", config.prompt.vocabulary)
    path = config.model.path
    is_folder = path.startswith(("/", ".", "~"))
    if is_folder:
        _require_below("model.path", path, WEIGHTS_FOLDER)
    parse_config(tree, where=RUN_FILE)  # what travels is a valid configuration, whatever was replaced
    files[RUN_FILE] = to_toml(tree)
    if (size := sum(len(text.encode()) for text in files.values())) > _MAX_BYTES:
        raise ConfigError(
            f"configuration and lists have {size} bytes",
            where="ConfigMap",
            expected=f"at most {_MAX_BYTES}",
            fix=f"put the lists into the data volume and name them by their path below {DATA_FOLDER}",
        )
    needs_weights = path not in STANDINS
    return TravellingConfig(files, needs_weights, needs_data, hub_cache=needs_weights and not is_folder)


def to_toml(tree: Mapping[str, Any]) -> str:
    """Returns TOML that reads back as ``tree`` (strings, booleans, finite numbers, lists of these, nested tables).

    Raises:
        ConfigError: a value is something else, or a string has no UTF-8.
    """
    try:
        text = tomli_w.dumps(tree)
        text.encode()
        json.dumps(tree, allow_nan=False)  # TOML has NaN and infinity, but no configuration accepts them
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a value cannot be written as TOML ({error})", where=RUN_FILE) from error
    return text


def _carry(files: dict[str, str], key: str, path: str) -> str:
    """Returns the path in the pods of a file that is here (added to ``files``) or there (left alone)."""
    if not path or path.startswith("/"):
        return path
    name = key + (".toml" if path.endswith(".toml") else ".txt")
    try:
        files[name] = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{key} = {path!r} cannot be read here ({reason})",
            where="configuration",
            fix="a relative path is read here and travels along; an absolute one must exist in the pods",
        ) from error
    return f"{CONFIG_FOLDER}/{name}"


def _require_below(key: str, path: str, folder: str) -> None:
    if ".." in PurePosixPath(path).parts or not PurePosixPath(path).is_relative_to(folder):
        raise _refused(
            key, path, f"expected a path below {folder}, where the pods see the volume; set {key}={folder}/…"
        )


def _refused(key: str, value: str, why: str) -> ConfigError:
    return ConfigError(f'{key} = "{value}" on a cluster: {why}', where="configuration")
