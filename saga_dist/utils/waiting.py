"""Notices of what a command waits for, so that no wait of the start is silent.

``announced`` is for what something else does, ``lasting`` for work of this process, which is a stage
(``utils/stages.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from saga_dist.utils.stages import logged_stage, stage

log = logging.getLogger(__name__)

FIRST_NOTICE_S = 5.0
"""Length of a wait, seconds, at which it is first logged."""
LONGEST_PAUSE_S = 60.0
"""Longest pause between two notices of one wait, seconds."""
CLOSE_S = 5.0
"""Longest time that the end of a context waits for a notice in progress, seconds."""
_POLL_S = 0.5
"""Time between two looks at what is waited for, seconds."""


def notice_times() -> Iterator[float]:
    """Yields the lengths of a wait, seconds, at which it is logged: 5, 10, 20, 40, 80, 140, then every minute."""
    due = FIRST_NOTICE_S
    while True:
        yield due
        due += min(due, LONGEST_PAUSE_S)


class WaitNotice:
    """Logs what is waited for while its context is open, also while the caller's thread is blocked.

    Args:
        what: returns what is waited for; empty while nothing is. A wait begins when the text is no longer empty and
            ends when it is empty again.
        detail: returns the reason of the wait, called for each notice; empty when there is none to name.
        verb: beginning of a notice.
        is_one_wait: False when another text is another wait, which is counted from its own beginning.
    """

    def __init__(
        self,
        what: Callable[[], str],
        detail: Callable[[], str] = lambda: "",
        *,
        verb: str = "waiting for",
        is_one_wait: bool = True,
    ) -> None:
        self._what, self._detail, self._verb, self._is_one_wait = what, detail, verb, is_one_wait
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="wait notice", daemon=True)

    def __enter__(self) -> WaitNotice:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(CLOSE_S)  # it may be asking for the reason, of something that is closed next

    def _watch(self) -> None:
        since, due, before = time.monotonic(), notice_times(), self._what()
        next_due = next(due)
        while not self._closed.wait(_POLL_S):
            what, now = self._what(), time.monotonic()
            changed, before = what != before, what
            if not what or (changed and not self._is_one_wait):
                since, due = now, notice_times()
                next_due = next(due)
            elif now - since >= next_due:
                next_due = next(due)
                detail = self._detail()
                log.info("%s %s, %.0f s so far%s", self._verb, what, now - since, f": {detail}" if detail else "")


def announced(what: str, detail: Callable[[], str] = lambda: "") -> WaitNotice:
    """Returns a context that logs one wait: ``what`` is waited for as long as the context is open."""
    return WaitNotice(lambda: what, detail)


def lasting(what: str, *arguments: object) -> WaitNotice:
    """Enters a stage and returns a context that logs it again, or the stage entered after it, for as long as it lasts.

    Args:
        what: as for ``stage``.
        arguments: as for ``stage``.
    """
    stage(what, *arguments)
    return WaitNotice(logged_stage, verb="still", is_one_wait=False)
