"""Files of a Hugging Face checkpoint, in a local folder or on the hub; only the requested tensors are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.errors import ModelError

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def is_local(path: str, name: str, revision: str = "main") -> bool:
    """Returns True when a file of a checkpoint is on this machine, in its folder or in the Hugging Face cache.

    No network is used.

    Args:
        path: folder, or hub name.
        name: name of the file.
        revision: hub revision; ignored for a folder.
    """
    return local_file(path, name, revision) is not None


def local_file(path: str, name: str, revision: str = "main") -> Path | None:
    """Returns a file of a checkpoint on this machine; None when it is not here. See ``is_local`` for the arguments."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        cached = huggingface_hub.try_to_load_from_cache(path, name, revision=revision)
    except HFValidationError:  # the path of a folder that does not exist is no valid hub name
        return None
    return Path(cached) if isinstance(cached, str) else None


class ModelFiles:
    """A checkpoint folder, or a hub repository at one revision.

    Args:
        path: folder, or hub name such as ``Qwen/Qwen3-VL-8B-Instruct``.
        revision: hub revision; ignored for a folder.

    Raises:
        ModelError: ``path`` can only be a folder, and the folder does not exist.
    """

    def __init__(self, path: str | Path, revision: str = "main") -> None:
        self.name = str(path)
        self._revision = revision
        folder = Path(path).expanduser()
        self._folder = folder if folder.is_dir() else None
        if self._folder is None and (isinstance(path, Path) or self.name.startswith(("/", ".", "~"))):
            raise ModelError("no such folder", where=self.name, fix="check model.path")

    @property
    def revision(self) -> str | None:
        """Hub revision; None for a folder."""
        return None if self._folder is not None else self._revision

    def file(self, name: str) -> Path:
        """Returns the local path of one file; a hub repository's file is downloaded unless it is in the cache.

        Raises:
            ModelError: there is no such file, or the hub cannot be reached.
        """
        found = self.find(name)
        if found is None:
            raise ModelError(f"has no {name}", where=self.name, expected="a checkpoint in Hugging Face format")
        return found

    def find(self, name: str) -> Path | None:
        """Returns the local path of one file, or None when the checkpoint does not have it.

        Raises:
            ModelError: the hub cannot be reached, or does not have the repository or revision.
        """
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        return self._find_on_hub(name)

    def json(self, name: str) -> dict[str, Any]:
        """Returns the content of one JSON file.

        Raises:
            ModelError: there is no such file, or it does not hold a JSON object.
        """
        path = self.file(name)
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot be read ({error})", where=str(path), expected="a JSON object") from error
        if not isinstance(content, dict):
            raise ModelError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object")
        return content

    def tensors(self, prefixes: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields name and value of every tensor whose name starts with one of ``prefixes``; no other tensor is read.

        Raises:
            ModelError: a safetensors file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        wanted = tuple(prefixes)
        for shard in self._shards(wanted):
            path = self.file(shard)
            try:
                with safe_open(path, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118 (not a mapping)
                        if name.startswith(wanted):
                            yield name, reader.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error

    def num_parameters(self) -> int:
        """Returns the number of weights in the checkpoint, for which only the headers of its files are read.

        Raises:
            ModelError: a safetensors file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        total = 0
        for shard in self._shards(("",)):
            path = self.file(shard)
            try:
                with safe_open(path, framework="pt") as reader:
                    total += sum(prod(reader.get_slice(name).get_shape()) for name in reader.keys())  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
        return total

    def has_tensor(self, prefixes: Sequence[str]) -> bool:
        """Returns True when the name of some tensor starts with one of ``prefixes``.

        With an index file no tensor is read; without one, at most one.

        Raises:
            ModelError: a safetensors file is missing or damaged.
        """
        if self.find(INDEX_NAME) is not None:
            return bool(self._shards(tuple(prefixes)))
        return next(iter(self.tensors(prefixes)), None) is not None

    def _shards(self, prefixes: tuple[str, ...]) -> list[str]:
        """Returns the files that have tensors whose names start with one of the prefixes."""
        if self.find(INDEX_NAME) is None:
            return [SINGLE_NAME]
        weight_map = self.json(INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError("has no weight_map", where=f"{self.name}/{INDEX_NAME}")
        return sorted({shard for name, shard in weight_map.items() if name.startswith(prefixes)})

    def _find_on_hub(self, name: str) -> Path | None:
        """Returns the local path of a file from the hub or its cache; None when the repository does not have it.

        Raises:
            ModelError: the hub cannot be reached, or does not have the repository or revision.
        """
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return Path(huggingface_hub.hf_hub_download(self.name, name, revision=self._revision))
        except errors.LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError for an unreachable hub
            raise ModelError(
                f"is not a folder, and {name} is neither on this machine nor can the hub be reached",
                where=self.name,
                fix="check model.path and the network",
            ) from error
        except errors.EntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise ModelError(
                f"is neither a folder nor a hub repository with revision {self._revision!r}",
                where=self.name,
                fix="check model.path and model.revision",
            ) from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise ModelError(
                f"the hub did not answer ({error})", where=self.name, fix="try again, or use a folder"
            ) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"cannot be read ({error})", where=str(path), expected="safetensors", fix="fetch the file again")
