"""Requests to stop by SIGTERM or SIGINT: at once before the first optimizer step, between two steps afterwards.

Before the first step nothing would be lost, and loading weights or waiting for a cluster may take minutes, so the
signal's handler raises an exception wherever the main thread is. Ray drops exceptions of signal handlers while it
waits, so waits in Ray are short, inside ``deferred``, and followed by ``check``.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from saga_dist.errors import Interrupted

log = logging.getLogger(__name__)


class StartAborted(BaseException):
    """Ends the start of a run; no ``Exception``, because libraries that load weights catch those and go on."""


class StopRequest:
    """State of the request to stop; calling it returns True once SIGTERM or SIGINT was received."""

    def __init__(self) -> None:
        self._received = False
        self._starting = True
        self._deferrals = 0

    def __call__(self) -> bool:
        return self._received

    @property
    def aborts_start(self) -> bool:
        """True when a stop was requested and the first step has not begun."""
        return self._received and self._starting

    def check(self) -> None:
        """Raises ``StartAborted`` when a stop was requested and the first step has not begun."""
        if self.aborts_start:
            raise StartAborted

    def steps_begin(self) -> None:
        """Ends the start: from now on the caller asks between steps. Raises ``StartAborted`` like ``check``."""
        self.check()
        self._starting = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps the handler from raising within the context; a later ``check`` raises instead."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal.

        Raises:
            KeyboardInterrupt: SIGINT after another signal.
            StartAborted: the first signal, before the first step and outside of ``deferred``.
        """
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self._received = not self._received, True
        name = signal.Signals(number).name
        if not self._starting:
            log.warning("%s: finishing this step, then writing a checkpoint", name)
            return
        log.warning("%s: stopping before the first step", name)
        if first and not self._deferrals:
            raise StartAborted


@contextmanager
def stop_on_signal(outer: StopRequest | None = None) -> Iterator[StopRequest]:
    """Yields the request to stop, which SIGTERM and SIGINT set while the context is open.

    A command opens it before it imports what takes seconds, and hands its request to the function that trains. A SIGINT
    after another of these signals raises ``KeyboardInterrupt``. Python delivers signals to the main thread only, so a
    run in another thread, as of a notebook's server, leaves them to the program.

    Args:
        outer: request of a context that is open already, which is yielded; None for none.

    Raises:
        Interrupted: the start was ended by a signal; nothing was trained since the last checkpoint.
    """
    if outer is not None:
        outer.check()  # the handler's exception is lost where Python ignores exceptions, in finalizers for example
        yield outer
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    except StartAborted:
        raise Interrupted("stopped before the first step", fix="the same command starts again") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
