"""Threads that wait for a pool's event loop: interrupted, released when it ends. Fake actors, no Ray."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from saga_dist.errors import WorkerError
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.pool import RayPool

CONFIG = PoolConfig(
    workers=2, tasks_per_lease=1, max_attempts=3, timeouts=Timeouts(start_s=60, lease_s=60, heartbeat_s=30)
)
Pool = RayPool[str, str]


@pytest.fixture
def pool_of() -> Iterator[Callable[..., Pool]]:
    """Makes pools from an adapter; closed after the test."""
    made: list[Pool] = []

    def make(adapter: Any, config: PoolConfig = CONFIG) -> Pool:
        made.append(RayPool(adapter, config))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def outcome_of(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Starts a thread that notes what a call returns or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def ask(pool: Pool) -> Callable[[], Any]:
    """A question that is never answered."""
    return lambda: pool.call("never")


@pytest.fixture
def stuck(pool_of: Any, fake_adapter: Any, scene: Any) -> Pool:
    """A pool whose only task and every question take for ever."""
    adapter = fake_adapter(lease_s=1e6)
    spawn = adapter.spawn

    def spawn_silent() -> Any:
        actor = spawn()
        actor.never = actor._method(lambda: (1e6, None))
        return actor

    adapter.spawn = spawn_silent
    pool: Pool = pool_of(adapter)
    pool.submit(["p0"])
    scene.until(lambda: sorted(scene.states(pool)) == ["busy", "idle"])
    return pool


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; in the background of a shell, Python would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("wait", [lambda pool: pool.collect, ask], ids=["collect", "ask"])
def test_interrupt_reaches_a_waiting_caller(wait: Any, stuck: Pool, interruptible: None) -> None:
    main = threading.main_thread()
    assert threading.current_thread() is main and main.ident is not None
    threading.Timer(0.3, signal.pthread_kill, (main.ident, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait(stuck)()
    assert 0.2 < time.monotonic() - began < 10
    assert stuck.num_pending == 1, "the pool goes on"


def test_close_releases_every_waiting_caller_and_may_be_repeated(stuck: Pool) -> None:
    collecting, collected = outcome_of(stuck.collect)
    asking, answered = outcome_of(ask(stuck))
    time.sleep(0.2)
    began = time.monotonic()
    stuck.close()
    stuck.close()
    collecting.join(10)
    asking.join(10)
    assert time.monotonic() - began < 10
    assert collected == [[]]
    assert isinstance(answered[0], WorkerError) and str(answered[0]) == "worker: the pool was closed"
    assert stuck.status() == () and stuck.num_pending == 0


def test_error_of_the_loop_itself_releases_every_waiting_caller(stuck: Pool) -> None:
    collecting, collected = outcome_of(stuck.collect)
    asking, answered = outcome_of(ask(stuck))
    time.sleep(0.2)

    def broken() -> None:
        raise ZeroDivisionError("a bug of ours")

    stuck._state.queue.hand_out = lambda *arguments, **numbers: broken()  # type: ignore[method-assign]
    stuck.submit(["p1"])
    collecting.join(10)
    asking.join(10)
    assert [type(error) for error in (*collected, *answered)] == [ZeroDivisionError, ZeroDivisionError]
    assert stuck.status() == ()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loop_that_stops_from_outside_releases_every_waiting_caller(stuck: Pool) -> None:
    collecting, collected = outcome_of(stuck.collect)
    asking, answered = outcome_of(ask(stuck))
    time.sleep(0.2)
    assert stuck._loop is not None
    stuck._loop.call_soon_threadsafe(stuck._loop.stop)
    collecting.join(10)
    asking.join(10)
    assert [str(error) for error in (*collected, *answered)] == ["Event loop stopped before Future completed."] * 2
    with pytest.raises(RuntimeError):
        stuck.submit(["p1"])


def test_answer_after_the_deadline_is_dropped_and_counted(pool_of: Any, fake_adapter: Any, scene: Any) -> None:
    adapter = fake_adapter(lease_s=1.0)
    adapter.kill = lambda actor: setattr(adapter, "lease_s", 0.0)  # a broken link: the first worker lives on
    timeouts = replace(CONFIG.timeouts, lease_s=0.5)
    pool = pool_of(adapter, replace(CONFIG, workers=1, max_attempts=2, tasks_per_lease=3, timeouts=timeouts))
    pool.submit(["p0", "p1", "p2"])
    found: list[str] = []
    while arrived := pool.collect():
        found += arrived
    assert sorted(found) == ["p0 done", "p1 done", "p2 done"]
    counts = dict.fromkeys(("duplicates", "replacements", "retries", "leases"), 0.0)

    def late_answer_has_come() -> bool:
        metrics = pool.metrics()
        for name in counts:
            counts[name] += metrics[name]
        return counts["duplicates"] > 0

    scene.until(late_answer_has_come)
    assert counts == {"duplicates": 3, "replacements": 1, "retries": 3, "leases": 4}
    assert pool.poll() == []


def test_two_thousand_tasks_on_forty_workers_come_back_once(pool_of: Any, fake_adapter: Any) -> None:
    pool = pool_of(fake_adapter(lease_s=0.001), replace(CONFIG, workers=40))
    tasks = [f"p{index}" for index in range(2000)]
    pool.submit(tasks)
    found: list[str] = []
    while arrived := pool.collect():
        found += arrived
    assert sorted(found) == sorted(f"{task} done" for task in tasks)
    assert pool.metrics()["leases"] == 2000
