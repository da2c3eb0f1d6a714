"""The connection to Ray: joins a cluster or starts a private one on this machine, and ends only what it started.

Inside ``ray job submit``, or with ``runtime.address`` or RAY_ADDRESS, the run joins that cluster. A process that is
already connected keeps its connection. Otherwise a private Ray is started, with its own temporary folder and random
token, without a dashboard, and without files in the home folder.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from saga_dist.config import RunConfig, RuntimeSection
from saga_dist.errors import ConfigError
from saga_dist.runtime.ray.resources import missing_resources, resource_requests

log = logging.getLogger(__name__)

CONNECT_DEADLINE_S = 10.0
"""Longest time for a TCP connection to the Ray head, seconds."""
NAMESPACE = "saga_dist"
"""Ray namespace of the actors."""


class RaySession:
    """Connection to Ray for one run.

    Args:
        config: the whole configuration.

    Raises:
        ConfigError: the address cannot be reached, the token is wrong, or a local Ray would be too small.
    """

    def __init__(self, config: RunConfig) -> None:
        self._needs = resource_requests(config)
        self._joined = self._started = False
        self._folder: Path | None = None
        address = config.runtime.address or os.environ.get("RAY_ADDRESS", "")
        if ray.is_initialized():
            log.debug("already connected to Ray")
        elif address and address != "local":
            self._join(address)
        else:
            self._start(config.runtime)
        if missing := self.missing():
            if self._started:
                self.close()
                raise ConfigError(
                    missing, where="local Ray", fix="use fewer GPUs per role, or a cluster (runtime.address)"
                )
            log.warning("%s; waiting for the cluster to grow", missing)

    def missing(self) -> str:
        """Returns the resources that the cluster lacks for the configured roles, as text; empty when it has all."""
        return missing_resources(self._needs, ray.cluster_resources())

    def close(self) -> None:
        """Ends the private Ray, or the connection if this object made it."""
        if self._joined or self._started:
            self._joined = self._started = False
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _join(self, address: str) -> None:
        _require_reachable(address)
        _use_authentication("token" if _has_token() else "disabled")
        try:
            with _own_sigterm_handler():
                ray.init(address=address, namespace=NAMESPACE, **_quiet())
        except (ConnectionError, AuthenticationError) as error:
            raise ConfigError(
                "Ray refused the connection",
                where=f"runtime.address = {address!r}",
                fix="check that it is a Ray head of this version and RAY_AUTH_TOKEN or ~/.ray/auth_token is its token",
            ) from error
        self._joined = True

    def _start(self, section: RuntimeSection) -> None:
        if missing := missing_resources(
            [replace(need, pinned=False) for need in self._needs if need.cpus],
            {"CPU": float(section.local_cpus), "GPU": 1e9},
        ):
            raise ConfigError(
                missing,
                where=f"runtime.local_cpus = {section.local_cpus}",
                fix="raise runtime.local_cpus, or lower rollout.workers, replay.workers or their num_cpus",
            )
        _use_authentication("token", _private_token())
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Paths of the Unix sockets in this folder may have at most 107 characters, so TMPDIR may be too deep.
        self._folder = Path(tempfile.mkdtemp(prefix="saga-", dir="/tmp" if Path("/tmp").is_dir() else None))
        try:
            with _own_sigterm_handler():
                ray.init(
                    address="local",
                    num_cpus=section.local_cpus,
                    resources={need.role: need.count for need in self._needs if need.pinned},
                    object_store_memory=section.object_store_mb * 1024**2,
                    include_dashboard=False,
                    namespace=NAMESPACE,
                    _temp_dir=str(self._folder),
                    **_quiet(),
                )
        except Exception as error:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"a local Ray did not start ({reason})", fix='try runtime.kind = "serial"') from error
        self._started = True


def _quiet() -> dict[str, Any]:
    debugging = logging.getLogger("saga_dist").isEnabledFor(logging.DEBUG)
    return {"log_to_driver": debugging, "logging_level": logging.INFO if debugging else logging.WARNING}


def _require_reachable(address: str) -> None:
    """Checks that an address accepts a TCP connection, because Ray itself would retry for two minutes.

    Raises:
        ConfigError: it is no address, or there is no connection within ``CONNECT_DEADLINE_S``.
    """
    where = f"runtime.address = {address!r}"
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError("not an address", where=where, expected='"host:port" of a Ray head')
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise ConfigError(
            f"no connection to this address ({error.strerror or error})",
            where=where,
            fix="check address and firewall, or `ray status` there",
        ) from error


def _has_token() -> bool:
    named = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in named) or (Path.home() / ".ray" / "auth_token").is_file()


@cache
def _private_token() -> str:
    return secrets.token_hex(32)  # cached, because Ray reads the token once per process and keeps it


def _use_authentication(mode: str, token: str = "") -> None:
    """Sets Ray's authentication for this process and its children, unless the environment already sets a mode."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = mode
    if token and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = token
    # Ray read the environment when it was imported; this makes it read it again, as Ray's own set-up does.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Restores the SIGTERM handler, which Ray replaces by one that exits without a checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
