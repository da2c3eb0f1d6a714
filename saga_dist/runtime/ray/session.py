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
from saga_dist.runtime.leftovers import FOLDER_PREFIX, Leftovers
from saga_dist.runtime.ray.actor_table import shortage
from saga_dist.runtime.ray.address import ClusterAddress, check_token, configured_address, has_token
from saga_dist.runtime.ray.resources import missing_resources, resource_requests
from saga_dist.runtime.stopping import StopRequest
from saga_dist.utils.waiting import announced

log = logging.getLogger(__name__)

NAMESPACE = "saga_dist"
"""Ray namespace of the actors."""


class RaySession:
    """Connection to Ray for one run.

    Args:
        config: the whole configuration.
        stop: request to stop, which may end the start.
        leftovers: record of what the processes of this machine create.

    Raises:
        ConfigError: the address cannot be reached, the token is wrong, or a local Ray would be too small.
    """

    def __init__(
        self, config: RunConfig, *, stop: StopRequest | None = None, leftovers: Leftovers | None = None
    ) -> None:
        self._needs = resource_requests(config)
        self._stop, self._leftovers = stop or StopRequest(), leftovers or Leftovers(None)
        self._joined = self._started = False
        self._folder: Path | None = None
        address = configured_address(config.runtime.address)
        if ray.is_initialized():
            log.debug("already connected to Ray")
        elif address is not None:
            self._join(address)
        else:
            self._start(config.runtime)
        if missing := missing_resources(self._needs, ray.cluster_resources()):
            if self._started:
                self.close()
                raise ConfigError(
                    missing, where="local Ray", fix="use fewer GPUs per role, or a cluster (runtime.address)"
                )
            log.warning("%s; waiting for the cluster to grow", missing)

    def missing(self) -> str:
        """Returns what the actors that have no node wait for, as text; empty when every actor has one."""
        return shortage(self._needs)

    def close(self) -> None:
        """Ends the private Ray, or the connection if this object made it."""
        if self._joined or self._started:
            self._joined = self._started = False
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _join(self, address: ClusterAddress) -> None:
        check_token()
        address.check()
        _use_authentication("token" if has_token() else "disabled")
        try:
            with announced(f"the Ray cluster at {address.value}"), _own_sigterm_handler(self._stop):
                ray.init(address=address.value, namespace=NAMESPACE, **_quiet())
        except AuthenticationError as error:
            raise address.refused(ConnectionError(str(error))) from error
        except (ConnectionError, RuntimeError, ValueError) as error:  # also another version of Ray or Python
            raise address.refused(error) from error
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
        check_token()
        _use_authentication("token", _private_token())
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Paths of the Unix sockets in this folder may have at most 107 characters, so TMPDIR may be too deep.
        parent = "/tmp" if Path("/tmp").is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
        self._leftovers.note(os.getpid(), folder=self._folder)
        try:
            with announced("the start of a local Ray"), _own_sigterm_handler(self._stop):
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
        except BaseException as error:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"a local Ray did not start ({reason})", fix='try runtime.kind = "serial"') from error
        self._started = True
        self._leftovers.note(os.getpid())


def _quiet() -> dict[str, Any]:
    debugging = logging.getLogger("saga_dist").isEnabledFor(logging.DEBUG)
    return {"log_to_driver": debugging, "logging_level": logging.INFO if debugging else logging.WARNING}


@cache
def _private_token() -> str:
    return secrets.token_hex(32)  # cached, because Ray reads the token once per process and keeps it


def _use_authentication(mode: str, token: str = "") -> None:
    """Sets Ray's authentication for this process and its children, unless the environment already sets a mode."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = mode
    if token and not has_token():
        os.environ["RAY_AUTH_TOKEN"] = token
    # Ray read the environment when it was imported; this makes it read it again, as Ray's own set-up does.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_sigterm_handler(stop: StopRequest) -> Iterator[None]:
    """Restores the SIGTERM handler, which Ray replaces by one that exits without a checkpoint.

    A SIGTERM that Ray's handler received within the context counts as a request to stop.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM or not callable(before):
            raise
        stop.receive(signal.SIGTERM)
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    stop.check()
