"""A headless Chromium over its DevTools protocol: what a page shows, logs, and asks of a network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_S, ANSWER_S, QUIET_S = 60.0, 60.0, 0.5

_BAD = ("error", "warning", "assert")
_AT_ONCE = "{block: 'center', behavior: 'instant'}"


class Browser:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the answer of a DevTools command; events that come meanwhile are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        deadline = time.monotonic() + ANSWER_S
        while True:
            message = json.loads(self._socket.recv(timeout=deadline - time.monotonic()))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path) -> None:
        """Loads a file and waits until it and its pictures are there."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + ANSWER_S
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, "the page did not load"
            self.settle()
        self.settle()

    def settle(self) -> None:
        """Takes events until none comes for a while."""
        try:
            while True:
                self.events.append(json.loads(self._socket.recv(timeout=QUIET_S)))
        except TimeoutError:
            return

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Sets the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def theme(self, scheme: str) -> None:
        """Prefers ``light`` or ``dark``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def click(self, selector: str) -> None:
        """Clicks where the element is, as a mouse does."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({_AT_ONCE})")
        place = self.run(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a select box."""
        self.run(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}); box.value = {json.dumps(value)};"
            " box.dispatchEvent(new Event('change')); })()"
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **(self._all() if whole else {}))
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Returns what was logged as warning or error, thrown, or refused by the page's policy."""
        return [
            json.dumps(event["params"])[:400]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in _BAD)
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in _BAD)
        ]

    def requests(self) -> list[str]:
        """Returns what was loaded besides the file itself and its data URIs."""
        urls = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url[:200] for url in urls if not url.startswith(("data:", "file:"))]

    def _all(self) -> dict[str, Any]:
        content = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": content["width"], "height": content["height"], "scale": 1}}


@contextmanager
def headless(profile: Path) -> Iterator[Browser]:
    """Starts a browser with a profile folder of its own and ends it."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(profile.parent)},  # it leaves a folder there
    )  # fmt: skip
    try:
        port = _port(profile / "DevToolsActivePort")
        with connect(_tab(port), max_size=None, open_timeout=START_S) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(file: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if file.exists() and "\n" in (text := file.read_text()):
            return int(text.splitlines()[0])
        time.sleep(0.1)
    raise AssertionError("chromium did not open its DevTools port")


def _tab(port: int) -> str:
    from urllib.request import ProxyHandler, build_opener

    opener = build_opener(ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=START_S) as answer:
        tabs = json.load(answer)
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
