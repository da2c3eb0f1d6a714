"""Address and token by which a run joins a Ray cluster, checked before Ray, which would retry for minutes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from saga_dist.errors import ConfigError

CONNECT_DEADLINE_S = 10.0
"""Longest time for a TCP connection to the Ray head, seconds."""
VARIABLE = "RAY_ADDRESS"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Environment variables with Ray's token, or with the path of a file that holds it."""
AUTH_MODES = ("disabled", "token")
LONGEST_PORT = 65535
LONGEST_REASON = 200
"""Largest number of characters of an error of Ray that is passed on."""


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Address of a cluster and the setting that it comes from."""

    value: str
    """Address as ``ray.init`` takes it: host:port, ray://host:port or auto."""
    setting: str
    """Name of the setting: ``runtime.address`` or ``RAY_ADDRESS``."""

    @property
    def where(self) -> str:
        """Setting and value, for errors."""
        return f"{self.setting} = {self.value!r}"

    def check(self) -> None:
        """Checks that the address has the form of one and accepts a TCP connection.

        Raises:
            ConfigError: it is no address of a Ray head, or there is no connection within ``CONNECT_DEADLINE_S``.
        """
        if self.value == "auto":
            return
        host, port = self._host_and_port()
        try:
            socket.create_connection((host, port), timeout=CONNECT_DEADLINE_S).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
            reason = getattr(error, "strerror", "") or str(error)
            raise ConfigError(
                f"no connection to this address ({reason})", where=self.where, fix=self._fix_connection(error)
            ) from error

    def refused(self, error: Exception) -> ConfigError:
        """Returns the error to raise when Ray did not join the cluster.

        Args:
            error: error of Ray.
        """
        if self.value == "auto" and "Could not find any running Ray instance" in str(error):
            return ConfigError(
                "no Ray runs on this machine",
                where=self.where,
                fix=f"start one (`ray start --head`), name its host:port, or {self._remove} for a Ray of the run's own",
            )
        reason = "" if isinstance(error, ConnectionError) else f" ({' '.join(str(error).split())[:LONGEST_REASON]})"
        fix = f"check that it is a Ray head of this version and has the token used here ({token_source()})"
        return ConfigError(f"Ray refused the connection{reason}", where=self.where, fix=fix)

    def _host_and_port(self) -> tuple[str, int]:
        scheme, separator, rest = self.value.rpartition("://")
        if scheme in ("http", "https"):
            raise ConfigError(
                "this is the address of Ray's dashboard, to which jobs are submitted",
                where=self.where,
                expected='"host:port" of the Ray head itself (port 6379 unless another was chosen)',
                fix=f"{self._remove} for a Ray of the run's own, or submit the run with `ray job submit`",
            )
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address
        is_port = port.isascii() and port.isdecimal() and 0 < int(port) <= LONGEST_PORT
        if (separator and scheme != "ray") or not host or not is_port:
            raise ConfigError("not an address", where=self.where, expected='"host:port" of a Ray head, or "auto"')
        return host, int(port)

    @property
    def _remove(self) -> str:
        return f"unset {VARIABLE}" if self.setting == VARIABLE else 'set runtime.address = ""'

    def _fix_connection(self, error: Exception) -> str:
        if isinstance(error, socket.gaierror | UnicodeError):
            return "check the spelling of the host, or whether this machine knows its name"
        if isinstance(error, ConnectionRefusedError):
            return f"check that a Ray head runs there (`ray status`) and listens on this port, or {self._remove}"
        return f"check the address and the firewall between, or `ray status` there, or {self._remove}"


def configured_address(setting: str) -> ClusterAddress | None:
    """Returns the address of the cluster to join; None when a private Ray is to be started.

    Args:
        setting: value of ``runtime.address``; empty to read the environment variable ``RAY_ADDRESS``.
    """
    setting, variable = setting.strip(), os.environ.get(VARIABLE, "").strip()
    from_variable = bool(variable) and setting in ("", "auto")  # with auto Ray itself prefers the variable
    value = variable if from_variable else setting
    if value in ("", "local"):
        return None
    return ClusterAddress(value, VARIABLE if from_variable else "runtime.address")


def has_token() -> bool:
    """Returns True when the environment or the home folder has a token."""
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or _token_file().is_file()


def token_source() -> str:
    """Returns where Ray's token comes from, in the order in which Ray looks, for errors."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "none: RAY_AUTH_MODE is disabled"
    for name in TOKEN_VARIABLES:
        if os.environ.get(name):
            return name
    return (
        str(_token_file()) if _token_file().is_file() else "none: neither RAY_AUTH_TOKEN nor ~/.ray/auth_token is there"
    )


def check_token() -> None:
    """Checks the environment variables of Ray's authentication.

    Raises:
        ConfigError: a variable has a value that Ray cannot use.
    """
    mode, path = os.environ.get("RAY_AUTH_MODE", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode and mode.lower() not in AUTH_MODES:
        raise ConfigError(
            "not a mode of authentication", where=f"RAY_AUTH_MODE = {mode!r}", expected=" or ".join(AUTH_MODES)
        )
    if mode.lower() == "disabled" or os.environ.get("RAY_AUTH_TOKEN") or not path:
        return
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "") or "not text"
        raise ConfigError(
            f"cannot be read ({reason})", where=f"RAY_AUTH_TOKEN_PATH = {path!r}", expected="a file with Ray's token"
        ) from error
    if not token:
        raise ConfigError("empty", where=f"RAY_AUTH_TOKEN_PATH = {path!r}", expected="a file with Ray's token")


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"
