"""Hosts that are really apart: network namespaces, each with a link to a bridge that tests cut, slow and heal.

    head: bridge 10.99.0.1 ──► veth ──► a: 10.99.0.2
                          └──► veth ──► b: 10.99.0.3

Everything is within namespaces of this module's own, which needs root and no other right; nothing outside of them is
touched. File system and shared memory are those of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEAD, NODES = "head", ("a", "b")
PORT = 6379
"""Port of the Ray head."""
CLOCK = Path(__file__).with_name("host_clock")
"""Folder whose ``sitecustomize.py`` shifts the clock of a host."""
STORE_BYTES = 80 * 1024**2
END_S = 10.0
START_ATTEMPTS = 3


@dataclass(frozen=True)
class Hosts:
    """Three hosts in namespaces whose names begin with ``prefix``."""

    prefix: str
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Hosts:
        try:
            self._create()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def address(self, host: str) -> str:
        return f"10.99.0.{1 + (HEAD, *NODES).index(host)}"

    def command(self, host: str, *command: str) -> list[str]:
        """Returns the command that runs another one on a host, where the machine has the host's name."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.namespace(host))
        return ["ip", "netns", "exec", self.namespace(host), *named, *command]

    def start_ray(self, host: str, folder: Path, resources: dict[str, int], **environment: str) -> None:
        """Starts a Ray node on a host, with these custom resources and variables; returns when it has joined.

        On a busy machine a node may miss the 30 s that Ray gives it, and is started again.
        """
        place = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
        if host != HEAD:
            place = [f"--address={self.address(HEAD)}:{PORT}"]
        options = [
            f"--node-ip-address={self.address(host)}",
            f"--num-cpus={0 if host == HEAD else 1}",
            f"--resources={json.dumps(resources)}",
            f"--object-store-memory={STORE_BYTES}",
        ]
        ray = str(Path(sys.executable).with_name("ray"))
        command = self.command(host, ray, "start", "--block", *place, *options)
        for attempt in range(START_ATTEMPTS):
            if self._joins(command, folder / f"{host}.{attempt}.log", environment):
                return
            self.kill(host)
        raise AssertionError((folder / f"{host}.{START_ATTEMPTS - 1}.log").read_text("utf-8", "replace")[-2000:])

    def _joins(self, command: list[str], log: Path, environment: dict[str, str]) -> bool:
        """Starts a process that becomes a Ray node; returns True when it has joined, False when it gives up."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)

        def joined() -> bool:
            return b"Ray runtime started" in log.read_bytes()

        wait_until(lambda: joined() or process.poll() is not None, f"the node of {log}", seconds=150)
        return joined() and process.poll() is None

    def kill(self, host: str) -> None:
        """Kills all processes of a host at once, as if its power were cut."""
        deadline = time.monotonic() + END_S
        while (pids := self._pids(host)) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def cut(self, host: str) -> None:
        """Cuts the link of a host: no packet arrives or leaves, and no connection is told."""
        run("ip", "-n", self.namespace(HEAD), "link", "set", "dev", self._port(host), "down")

    def heal(self, host: str) -> None:
        """Mends the link of a host."""
        run("ip", "-n", self.namespace(HEAD), "link", "set", "dev", self._port(host), "up")

    def slow(self, host: str) -> str:
        """Delays what is sent to a host; returns how: by netem, or, where the kernel lacks it, by a narrow link."""
        change = ("tc", "-n", self.namespace(HEAD), "qdisc", "add", "dev", self._port(host), "root")
        if not run(*change, "netem", "delay", "150ms", check=False).returncode:
            return "netem"
        run(*change, "tbf", "rate", "1mbit", "burst", "16kb", "latency", "4s")
        return "tbf"

    def speed_up(self, host: str) -> None:
        """Ends the delay."""
        run("tc", "-n", self.namespace(HEAD), "qdisc", "del", "dev", self._port(host), "root")

    def remove(self) -> None:
        """Kills every process in the namespaces and removes them."""
        for host in (*NODES, HEAD):
            self.kill(host)
            run("ip", "netns", "del", self.namespace(host), check=False)
        for process in self._started:
            process.wait(END_S)

    def _create(self) -> None:
        for host in (HEAD, *NODES):
            run("ip", "netns", "add", self.namespace(host))
            self._ip(host, "link", "set", "lo", "up")
        self._ip(HEAD, "link", "add", "br0", "type", "bridge")
        self._connect(HEAD, "br0")
        for host in NODES:
            peer = ("peer", "name", "eth0", "netns", self.namespace(host))
            self._ip(HEAD, "link", "add", self._port(host), "type", "veth", *peer)
            self._ip(HEAD, "link", "set", self._port(host), "master", "br0", "up")
            self._connect(host, "eth0")

    def _connect(self, host: str, device: str) -> None:
        self._ip(host, "addr", "add", f"{self.address(host)}/24", "dev", device)
        self._ip(host, "link", "set", device, "up")
        self._ip(host, "route", "add", "default", "dev", device)  # by which Ray finds the own address

    def _ip(self, host: str, *arguments: str) -> None:
        run("ip", "-n", self.namespace(host), *arguments)

    def _port(self, host: str) -> str:
        return f"to-{host}"

    def _pids(self, host: str) -> list[int]:
        return [int(pid) for pid in run("ip", "netns", "pids", self.namespace(host), check=False).stdout.split()]


def why_not() -> str:
    """Returns why this machine cannot make hosts, as text; empty where it can."""
    if missing := [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]:
        return f"no command {missing[0]} here; install iproute2 and util-linux"
    made = run("ip", "netns", "add", f"probe-{os.getpid()}", check=False)
    run("ip", "netns", "del", f"probe-{os.getpid()}", check=False)
    return f"no network namespace can be made ({made.stderr.strip()}); needs root" if made.returncode else ""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a short command and returns what it said; raises an error that says it too."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert not check or not done.returncode, f"{' '.join(command)}: {done.stderr.strip()}"
    return done


def wait_until(condition: Any, what: str, *, seconds: float) -> float:
    """Waits until a condition holds; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - started
