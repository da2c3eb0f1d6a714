"""The work queue without Ray: which worker gets which tasks, retries of single tasks, and quarantine."""

from __future__ import annotations

import random
from typing import Any

import pytest

from saga_dist.errors import WorkerError
from saga_dist.workers.work_queue import WorkQueue


def queue_of(number: int, *, max_attempts: int = 3, max_quarantined: int = 8) -> WorkQueue[str]:
    queue: WorkQueue[str] = WorkQueue(max_attempts=max_attempts, max_quarantined=max_quarantined)
    for index in range(number):
        queue.add(f"p{index}", f"task {index}")
    return queue


def test_fresh_tasks_are_shared_evenly_with_those_who_are_coming() -> None:
    queue = queue_of(16)
    given = queue.hand_out(["a", "b"], num_coming=2, most=16)
    assert {name: len(tasks) for name, tasks in given.items()} == {"a": 4, "b": 4}
    assert given["a"] == ["task 0", "task 1", "task 2", "task 3"], "first come, first served"
    assert queue.on_lease("b") == ("p4", "p5", "p6", "p7")
    assert (queue.num_waiting, queue.num_leases, len(queue)) == (8, 2, 16)


def test_nobody_gets_more_than_fits_on_a_lease_or_nothing() -> None:
    assert {name: len(tasks) for name, tasks in queue_of(16).hand_out("ab", num_coming=0, most=3).items()} == {
        "a": 3,
        "b": 3,
    }
    assert queue_of(1).hand_out("ab", num_coming=0, most=16) == {"a": ["task 0"]}
    assert queue_of(0).hand_out("ab", num_coming=0, most=16) == {}
    assert queue_of(4).hand_out("", num_coming=2, most=16) == {}


class Looked(list[str]):
    """A list that counts the items that are looked at."""

    number = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.number += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Any:
        raise AssertionError("every idle worker would be looked at")


def test_nobody_is_looked_at_who_gets_no_lease() -> None:
    queue, idle = queue_of(3), Looked(f"worker {index}" for index in range(1000))
    assert queue.hand_out(idle, num_coming=0, most=1).keys() == {"worker 0", "worker 1", "worker 2"}
    assert idle.number == 3
    for name in ("worker 0", "worker 1"):
        queue.fail(name, "died")
    assert queue.hand_out(idle, num_coming=0, most=1).keys() == {"worker 0", "worker 1"}
    assert idle.number == 5


def test_tasks_of_a_failed_lease_are_tried_alone_before_fresh_ones() -> None:
    queue = queue_of(4)
    queue.hand_out("a", num_coming=0, most=3)
    assert queue.fail("a", "died") == []
    given = queue.hand_out("abcd", num_coming=0, most=3)
    assert given == {"a": ["task 0"], "b": ["task 1"], "c": ["task 2"], "d": ["task 3"]}
    assert queue.take_counts() == {"leases": 5, "retries": 3, "quarantined": 0, "duplicates": 0, "cancelled": 0}
    assert queue.take_counts()["leases"] == 0, "counts are since the last call"


def test_task_that_also_fails_alone_on_two_workers_is_set_aside_and_its_companions_are_not() -> None:
    queue = queue_of(2)
    queue.hand_out("a", num_coming=0, most=2)
    queue.fail("a", "died together")
    queue.hand_out("ab", num_coming=0, most=2)
    assert queue.finish("b") == ("p1",)
    assert queue.fail("a", "died alone") == []
    queue.hand_out("a", num_coming=0, most=2)
    (lost,) = queue.fail("a", "died again")
    assert (lost.pair_id, lost.reason, lost.attempts) == ("p0", "died again", 3)
    assert len(queue) == 0
    assert queue.take_counts()["quarantined"] == 1


def test_too_many_set_aside_is_an_error_that_names_the_last_reason() -> None:
    queue = queue_of(3, max_attempts=1, max_quarantined=1)
    queue.hand_out("a", num_coming=0, most=1)
    assert len(queue.fail("a", "out of memory")) == 1
    queue.hand_out("a", num_coming=0, most=1)
    with pytest.raises(WorkerError, match=r"^pair p1: 2 groups .*the last one: no disk; expected at most 1 \(rollout"):
        queue.fail("a", "no disk")


def test_lease_given_back_waits_at_the_front_and_costs_no_attempt() -> None:
    queue = queue_of(4, max_attempts=1)
    queue.hand_out("a", num_coming=0, most=2)
    queue.give_back("a")
    assert queue.hand_out("b", num_coming=0, most=4) == {"b": ["task 0", "task 1", "task 2", "task 3"]}
    assert queue.take_counts()["retries"] == 0


def test_forgotten_lease_gives_nothing_and_does_not_touch_its_namesakes() -> None:
    queue = queue_of(2)
    queue.hand_out("a", num_coming=0, most=2)
    queue.forget()
    assert (len(queue), queue.on_lease("a")) == (0, ())
    queue.add("p0", "again")
    assert queue.hand_out("b", num_coming=0, most=2) == {"b": ["again"]}
    assert queue.fail("a", "died") == []
    assert queue.finish("a") == ()
    assert queue.finish("b") == ("p0",)


def test_pending_pair_is_not_queued_twice() -> None:
    queue = queue_of(2)
    queue.add("p1", "other")
    assert len(queue) == 2
    assert queue.take_counts()["duplicates"] == 1
    queue.hand_out("a", num_coming=0, most=2)
    queue.finish("a")
    queue.add("p1", "later")
    assert len(queue) == 1


def test_whatever_happens_every_task_ends_exactly_once() -> None:
    """A thousand random histories of leases that end well, badly or by recall."""
    for seed in range(1000):
        chance = random.Random(seed)
        queue = queue_of(chance.randrange(1, 20), max_attempts=chance.randrange(1, 4), max_quarantined=99)
        wanted, ended, busy = len(queue), [], set()
        for _ in range(500):
            idle = [name for name in "abc" if name not in busy]
            busy |= queue.hand_out(idle, num_coming=chance.randrange(2), most=chance.randrange(1, 5)).keys()
            if not busy:
                break
            name = chance.choice(sorted(busy))
            busy.remove(name)
            match chance.choice(["finish", "finish", "fail", "give back"]):
                case "finish":
                    ended += queue.finish(name)
                case "fail":
                    ended += [lost.pair_id for lost in queue.fail(name, "chance")]
                case _:
                    queue.give_back(name)
        assert sorted(ended) == sorted(f"p{index}" for index in range(wanted))
        assert len(queue) == queue.num_leases == queue.num_waiting == 0


def test_cancelled_tasks_are_neither_waiting_nor_among_the_results_of_their_lease() -> None:
    queue = queue_of(6)
    queue.hand_out("a", num_coming=0, most=3)
    queue.cancel({"p1", "p4", "no such pair"})
    assert queue.on_lease("a") == ("p0", "p2")
    assert (queue.num_waiting, len(queue), queue.take_counts()["cancelled"]) == (2, 4, 2)
    queue.add("p1", "again")  # while the worker still generates the first one
    assert queue.finish("a") == ("p0", "p2")
    assert queue.hand_out("a", num_coming=0, most=9) == {"a": ["task 3", "task 5", "again"]}


def test_a_cancelled_task_is_not_tried_again() -> None:
    queue = queue_of(2)
    queue.hand_out("a", num_coming=0, most=2)
    queue.fail("a", "died")
    queue.hand_out("a", num_coming=0, most=2)
    queue.cancel({"p0", "p1"})
    assert queue.fail("a", "died") == []
    assert (queue.num_waiting, len(queue)) == (0, 0)
