"""Scripted rollout workers for the tests of the pool: tasks, what must come back, pools that end with their test."""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.types import ImagePair, MicroBatch, RolloutTask, Sampling, ScoredGroup

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)


class Scene:
    """What the tests of the pool share."""

    def config(self, **rollout: Any) -> RunConfig:
        return parse_config(
            {
                "data": {"layout": "birds", "image_size": 80},
                "rollout": {"workers": 2, "num_cpus": 0.5, **rollout},
                "runtime": {"threads": 1},
            },
            where="test",
        )

    def plain_tasks(self, number: int, *, first: int = 0) -> list[RolloutTask]:
        """Tasks whose handles are the records."""
        from saga_dist.runtime.ray.fake_workers import FakeLearner
        from saga_dist.runtime.ray.fault_plan import FaultPlan

        pairs = tuple(ImagePair(f"p{index:02d}", index, index + 1, 0, index % 2) for index in range(number))[first:]
        batch = MicroBatch(0, 0, tuple(range(number + 1)), (0,) * (number + 1), 0, pairs)
        encoded = FakeLearner(self.config(), FaultPlan()).encode(batch).handles
        return [RolloutTask(pair, tokens, SAMPLING) for pair, tokens in zip(pairs, encoded, strict=True)]

    def tasks(self, number: int, *, first: int = 0) -> list[RolloutTask]:
        """The same tasks with their tokens in the object store."""
        from saga_dist.runtime.ray.object_refs import put_tokens

        plain = self.plain_tasks(number, first=first)
        return [replace(task, tokens=put_tokens(task.tokens)) for task in plain]

    def drain(self, pool: Any, groups: list[Any] | None = None) -> list[Any]:
        """Everything that is pending, in order of pair; ``groups`` collects what came before an error."""
        groups = [] if groups is None else groups
        while arrived := pool.collect():
            groups += arrived
        return sorted(groups, key=lambda group: group.pair.pair_id)

    def assert_right(self, found: Sequence[ScoredGroup], number: int) -> None:
        """All groups of ``tasks(number)``, once each, as a worker in this process would have made them."""
        from saga_dist.runtime.ray.fake_workers import fake_group

        wanted = [fake_group(task, task.tokens) for task in self.plain_tasks(number)]
        assert [group.pair for group in found] == [group.pair for group in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.completions.texts == theirs.completions.texts
            assert mine.rewards_G.tolist() == theirs.rewards_G.tolist()
            for ours, others in zip(mine.completions.log_probs, theirs.completions.log_probs, strict=True):
                assert ours.tolist() == others.tolist()

    def until(self, condition: Callable[[], Any], *, seconds: float = 90) -> None:
        """Returns as soon as ``condition`` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def states(self, pool: Any) -> list[str]:
        """What each slot does, the oldest first."""
        return [worker.state for worker in pool.status()]

    def pids(self, pool: Any) -> dict[str, int]:
        return {name: info.pid for name, info in pool.workers().items()}


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def make_pool(ray_cluster: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Makes pools of scripted rollout workers that have not been started; closed after the test."""
    from saga_dist.runtime.ray.adapters import RolloutAdapter
    from saga_dist.runtime.ray.fake_workers import fake_factories
    from saga_dist.runtime.ray.fault_plan import FaultPlan
    from saga_dist.runtime.ray.pool import RayPool

    made: list[Any] = []

    def make(config: Any, script: FaultPlan | None = None, *, missing: str = "", **rollout: Any) -> Any:
        made.append(RayPool(RolloutAdapter(Scene().config(**rollout), fake_factories(script), lambda: missing), config))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


# ---------------------------------------------------------------------- workers without Ray, on a clock of their own


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


@pytest.fixture
def instantly() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine without waiting, and fails when it would wait for ever."""

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=InstantLoop) as runner:
            return runner.run(work)

    return run


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


@pytest.fixture
def fake_adapter() -> Callable[..., FakeAdapter]:
    """Makes adapters of fake actors."""
    return FakeAdapter


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


@pytest.fixture
def fed_adapter() -> FedAdapter:
    """An adapter of fake actors that are fed."""
    return FedAdapter()
