"""Extension points, whose objects the configuration names: by a built-in name or by ``package.module:object``.

Each extension point (metric loss, reward, prompt template, rollout engine, model family, data layout, encoder for
comparison) has one ``Registry``. Built-in objects are given by import paths too, so that reading a configuration does
not import them.
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
        point: name of the extension point, singular, for messages (``metric loss``).
        key: configuration key or option whose value names an object (``objective.metric_loss``).
        builtin: import path ``module:object`` of every built-in object, by its name.
    """

    point: str
    key: str
    builtin: Mapping[str, str]

    def check(self, name: str) -> None:
        """Checks the form of a name without importing the object.

        Raises:
            ConfigError: the name is neither a built-in name nor an import path.
        """
        if name not in self.builtin and not is_import_path(name):
            raise ConfigError(
                f"unknown {self.point} {name!r}",
                where=self.key,
                expected=f"one of {', '.join(self.builtin)}, or package.module:object",
            )

    def load(self, name: str) -> ObjectT:
        """Imports and returns the object of a name.

        Raises:
            ConfigError: the name is unknown, or this process cannot import it.
        """
        self.check(name)
        found: ObjectT = import_object(self.builtin.get(name, name), key=self.key)
        return found

    def load_callable(self, name: str, *arguments: str, keywords: Collection[str] = ()) -> ObjectT:
        """Imports the object of a name, checks that it can be called with some arguments, and returns it.

        Args:
            name: built-in name or import path.
            arguments: names of the positional arguments of the calls.
            keywords: names of the keyword arguments of the calls.

        Raises:
            ConfigError: as for ``load``; or the object is not callable, or not with these arguments.
        """
        found = self.load(name)
        if not callable(found):
            raise ConfigError(f"{name!r} is a {type(found).__name__}", where=self.key, expected="a callable")
        try:
            signature = inspect.signature(found)
        except ValueError:  # a callable of C code without a signature
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
        """Converts an exception of the user's object in the body of ``with`` to a ConfigError that names the object.

        Errors of this package and exceptions of a built-in object are not converted.

        Args:
            name: name of the object that is called.

        Raises:
            ConfigError: the object raised an exception.
        """
        try:
            yield
        except SagaError:
            raise
        except Exception as error:  # any exception of the user's object is a mistake in it
            if name in self.builtin:
                raise
            raise ConfigError(f"{name!r} raised {one_line(error)}", where=self.key) from error


def is_import_path(name: str) -> bool:
    """Returns True when a name has the form ``package.module:object``."""
    return _IMPORT_PATH.fullmatch(name) is not None


def import_object(path: str, *, key: str) -> Any:
    """Imports and returns the object at ``package.module:object``.

    The current directory is appended to ``sys.path``, so that the user's modules in it are found after installed ones.

    Args:
        path: the import path.
        key: configuration key with this value, for messages.

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
    except Exception as error:  # any exception during the import is a mistake in the user's module
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
    """Returns type and message of an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
