"""Workers without Ray: actor handles that answer on the clock of the running loop, which a test may replace."""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any


class InstantSelector(selectors.DefaultSelector):
    """Moves its clock on by what it is asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "every coroutine waits for something that has no deadline"
        self.now += timeout
        return super().select(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._clock = InstantSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class FakeActor:
    """An actor handle whose methods answer after a while on the running loop's clock, until it hangs or is killed.

    Args:
        pid: tells it from others; it is alone on node ``node-<pid>``.
        start: seconds that the start takes, or the error that it ends with.
        hangs_at: when it stops to answer, of the loop's clock.
    """

    def __init__(self, pid: int, start: float | Exception, hangs_at: float) -> None:
        from saga_dist.runtime.ray.errors import WorkerInfo

        self.alive, self.hangs_at, self.num_health_calls = True, hangs_at, 0
        self.info = info = WorkerInfo(pid, "", f"node-{pid}", "")
        self.start = self._method(lambda: (0.0, start) if isinstance(start, Exception) else (start, info))
        self.health = self._method(self._health)

    def answer(self, seconds: float, value: Any) -> Any:
        """Returns a reference to an answer, or error, that comes after so many seconds."""
        loop, answer = asyncio.get_running_loop(), concurrent.futures.Future[Any]()

        def settle() -> None:
            if not self.alive or loop.time() >= self.hangs_at:
                return
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        loop.call_later(seconds, settle)
        return SimpleNamespace(future=lambda: answer)

    def _health(self) -> tuple[float, float]:
        self.num_health_calls += 1
        return 0.0, 1.0

    def _method(self, outcome: Callable[[], tuple[float, Any]]) -> Any:
        return SimpleNamespace(remote=lambda: self.answer(*outcome()))


class FakeAdapter:
    """An ``ActorAdapter`` of fake actors; tasks and results are strings.

    Args:
        starts: what the starts come to, in order, see ``FakeActor``; further ones take no time.
        lease_s: seconds of each lease.
    """

    name = "worker"

    def __init__(self, starts: Sequence[float | Exception] = (), *, lease_s: float = 1.0) -> None:
        self.lease_s, self.hangs_at = lease_s, float("inf")
        self.spawned: list[tuple[float, FakeActor]] = []
        """Every actor ever made, and when."""
        self._starts = iter(starts)

    def spawn(self) -> FakeActor:
        actor = FakeActor(len(self.spawned), next(self._starts, 0.0), self.hangs_at)
        self.spawned.append((asyncio.get_running_loop().time(), actor))
        return actor

    def came_up(self, info: Any) -> None:
        """Records nothing."""

    def kill(self, actor: FakeActor) -> None:
        actor.alive = False

    async def end(self, actor: FakeActor) -> None:
        self.kill(actor)

    def send(self, actor: FakeActor, tasks: Sequence[str], cancelled: Sequence[str]) -> tuple[Any, Sequence[Any]]:
        return actor.answer(self.lease_s, [f"{task} done" for task in tasks]), ()

    def receive(self, answer: list[str], payloads: Sequence[Any]) -> tuple[list[str], Sequence[str]]:
        return answer, ()

    def task_key(self, task: str) -> str:
        return task

    def result_key(self, result: str) -> str:
        return result.removesuffix(" done")

    def missing(self) -> str:
        return "9 CPUs needed, 2 there"


class FedAdapter(FakeAdapter):
    """An adapter of fake actors that are fed; a test says which task is finished, and when.

    ``finish`` and ``fail`` may be called in any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, list[str]] = {}
        """Tasks in flight at each actor, by its number."""
        self.seen: list[list[str]] = []
        """Tasks in flight at an actor after each call of it."""
        self.aborted: list[str] = []
        """Tasks that were cancelled while in flight."""
        self.num_interruptions = 0
        self._done: dict[int, list[str]] = {}
        self._answers: dict[int, concurrent.futures.Future[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def spawn(self) -> FakeActor:
        actor = super().spawn()
        self._loop = asyncio.get_running_loop()
        number = len(self.spawned) - 1
        actor.number = number  # type: ignore[attr-defined]
        self.open[number], self._done[number] = [], []
        info = replace(actor.info, is_fed=True)
        actor.start = actor._method(lambda: (0.0, info))
        return actor

    def send(self, actor: Any, tasks: Sequence[str], cancelled: Sequence[str]) -> tuple[Any, Sequence[Any]]:
        in_flight = self.open[actor.number]
        for task in cancelled:
            assert task in in_flight, f"{task} is not in flight"
            in_flight.remove(task)
            self.aborted.append(task)
        assert not set(in_flight) & set(tasks), "a task is there already"
        in_flight += tasks
        self.seen.append(list(in_flight))
        answer = self._answers[actor.number] = concurrent.futures.Future[Any]()
        if not in_flight or self._done[actor.number]:
            self._settle(actor.number)
        return SimpleNamespace(future=lambda: answer), ()

    def receive(self, answer: Any, payloads: Sequence[Any]) -> tuple[list[str], Sequence[str]]:
        return answer  # type: ignore[no-any-return]

    def interrupt(self, actor: Any) -> Any:
        self.num_interruptions += 1
        self._settle(actor.number)
        return actor.answer(0.0, None)

    def finish(self, *tasks: str) -> None:
        """Lets actors finish these tasks, which are in flight."""

        def on_loop() -> None:
            for task in tasks:
                (number,) = [number for number, open_ in self.open.items() if task in open_]
                self.open[number].remove(task)
                self._done[number].append(task)
            for number, done in self._done.items():
                if done:
                    self._settle(number)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(on_loop)

    def fail(self, task: str, error: Exception) -> None:
        """Lets the actor with this task fail."""

        def on_loop() -> None:
            (number,) = [number for number, open_ in self.open.items() if task in open_]
            self._answers[number].set_exception(error)
            self.open[number] = []

        assert self._loop is not None
        self._loop.call_soon_threadsafe(on_loop)

    def refuse(self, task: str, error: Exception) -> None:
        """Lets the actor with this task answer with an error and live on with what it has."""
        assert self._loop is not None
        (number,) = [number for number, open_ in self.open.items() if task in open_]
        self._loop.call_soon_threadsafe(self._answers[number].set_exception, error)

    def silent(self) -> FakeActor:
        """Returns an actor whose start never returns."""
        actor = FakeActor(-1, 1e6, self.hangs_at)
        actor.number = -1  # type: ignore[attr-defined]
        return actor

    def kill(self, actor: Any) -> None:
        super().kill(actor)
        self.open[actor.number] = []

    def _settle(self, number: int) -> None:
        answer = self._answers[number]
        if not answer.done():
            done, self._done[number] = self._done[number], []
            answer.set_result(([f"{task} done" for task in done], list(self.open[number])))
