"""Files of a Hugging Face checkpoint, in a local folder or on the hub; reads only the tensors that are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.errors import ModelError

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def at_hand(path: str, name: str, revision: str = "main") -> bool:
    """Returns whether a file of a checkpoint is on this machine, in its folder or in the hub's cache; asks nobody."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    if Path(path).expanduser().is_dir():
        return (Path(path).expanduser() / name).is_file()
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(path, name, revision=revision), str)
    except HFValidationError:  # a folder that is not there
        return False


class ModelFiles:
    """A checkpoint folder, or a hub repository at one revision.

    Args:
        path: folder, or hub name such as ``Qwen/Qwen3-VL-8B-Instruct``.
        revision: hub revision; a folder has none.

    Raises:
        ModelError: ``path`` can only be a folder and there is none.
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
        """Revision on the hub; None for a folder."""
        return None if self._folder is not None else self._revision

    def file(self, name: str) -> Path:
        """Returns the local path of one file, fetching it from the hub (or its cache) if need be.

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
        """Yields name and tensor, one at a time, where the name starts with one of ``prefixes``; others are never read.

        Raises:
            ModelError: no safetensors files, or one that is damaged.
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
                raise ModelError(
                    f"cannot be read ({error})", where=str(path), expected="safetensors", fix="fetch the file again"
                ) from error

    def has_tensor(self, prefixes: Sequence[str]) -> bool:
        """Returns whether some tensor's name starts with one of ``prefixes``; none is read more than that takes.

        Raises:
            ModelError: no safetensors files, or one that is damaged.
        """
        if self.find(INDEX_NAME) is not None:
            return bool(self._shards(tuple(prefixes)))
        return next(iter(self.tensors(prefixes)), None) is not None

    def _shards(self, prefixes: tuple[str, ...]) -> list[str]:
        if self.find(INDEX_NAME) is None:
            return [SINGLE_NAME]
        weight_map = self.json(INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError("has no weight_map", where=f"{self.name}/{INDEX_NAME}")
        return sorted({shard for name, shard in weight_map.items() if name.startswith(prefixes)})

    def _find_on_hub(self, name: str) -> Path | None:
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return Path(huggingface_hub.hf_hub_download(self.name, name, revision=self._revision))
        except errors.LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but it says nothing of the hub
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
