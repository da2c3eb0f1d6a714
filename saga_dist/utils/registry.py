"""Extension points: the configuration names an object by a built-in name or by ``package.module:object``.

Each extension point (metric loss, reward, prompt template, rollout engine, model family, data layout, encoder for
comparison) has one ``Registry``. Built-ins are import paths too, so that reading a configuration imports none of them.
"""

from __future__ import annotations

import importlib
import inspect
import platform
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from saga_dist.errors import ConfigError, SagaError

ObjectT = TypeVar("ObjectT")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Registry(Generic[ObjectT]):
    """The objects that one extension point accepts.

    Args:
        point: what the objects are, singular, for messages (``metric loss``).
        key: the configuration key or option that names one (``objective.metric_loss``).
        builtin: import path ``module:object`` of every built-in, by its name.
    """

    point: str
    key: str
    builtin: Mapping[str, str]

    def check(self, name: str) -> None:
        """Checks the form of a name; imports nothing.

        Raises:
            ConfigError: neither a built-in name nor an import path.
        """
        if name not in self.builtin and not is_import_path(name):
            raise ConfigError(
                f"unknown {self.point} {name!r}",
                where=self.key,
                expected=f"one of {', '.join(self.builtin)}, or package.module:object",
            )

    def load(self, name: str) -> ObjectT:
        """Returns the object that a name stands for.

        Raises:
            ConfigError: the name is unknown, or this process cannot import it.
        """
        self.check(name)
        found: ObjectT = import_object(self.builtin.get(name, name), key=self.key)
        return found

    def load_callable(self, name: str, *arguments: str, keywords: Collection[str] = ()) -> ObjectT:
        """Returns the object that a name stands for, which takes these arguments.

        Args:
            name: built-in name or import path.
            arguments: names of the positional arguments that it is called with.
            keywords: names of the keyword arguments.

        Raises:
            ConfigError: as ``load``; or the object is not callable, or not with these arguments.
        """
        found = self.load(name)
        if not callable(found):
            raise ConfigError(f"{name!r} is a {type(found).__name__}", where=self.key, expected="a callable")
        try:
            signature = inspect.signature(found)
        except ValueError:  # a callable of C code that does not tell its signature
            return found
        try:
            signature.bind(*arguments, **dict.fromkeys(keywords))
        except TypeError as error:
            raise ConfigError(
                f"{name!r} cannot be called ({error})",
                where=self.key,
                expected=f"the arguments ({', '.join([*arguments, *(f'{keyword}=' for keyword in keywords)])})",
            ) from error
        return found

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Turns whatever an object of the user's own raises within into one line that names it.

        Errors of this package pass unchanged, and so do those of a built-in.

        Raises:
            ConfigError: the object raised.
        """
        try:
            yield
        except SagaError:
            raise
        except Exception as error:  # decided here: whatever the user's object raises is a mistake in it
            if name in self.builtin:
                raise
            raise ConfigError(f"{name!r} raised {one_line(error)}", where=self.key) from error


def is_import_path(name: str) -> bool:
    """Returns whether ``name`` has the form ``package.module:object``."""
    return _IMPORT_PATH.fullmatch(name) is not None


def import_object(path: str, *, key: str) -> Any:
    """Returns the object at ``package.module:object``.

    Modules in the current directory are found after all installed ones, as other commands find the user's code.

    Args:
        path: the import path.
        key: the configuration key that holds it, for messages.

    Raises:
        ConfigError: the module cannot be imported on this node, or has no such object.
    """
    module_name, _, names = path.partition(":")
    node = platform.node()
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path!r}: no module {error.name!r} on node {node}",
            where=key,
            fix="install the package on every node, or send it along: `ray job submit --working-dir .`",
        ) from error
    except Exception as error:  # decided here: whatever the user's module does on import is a mistake in it
        raise ConfigError(
            f"{path!r}: importing {module_name} on node {node} failed ({one_line(error)})",
            where=key,
            fix=f"make `python -c 'import {module_name}'` work there",
        ) from error
    for name in names.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise ConfigError(f"{path!r}: {module_name} has no {names!r}", where=key, fix="check the name") from error
    return found


def one_line(error: BaseException) -> str:
    """Returns type and message of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
