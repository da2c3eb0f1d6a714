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
    assert list(queue.on_lease("b")) == ["p4", "p5", "p6", "p7"]
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
    assert queue.end_lease("b") == ("p1",)
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
    assert (len(queue), queue.on_lease("a")) == (0, {})
    queue.add("p0", "again")
    assert queue.hand_out("b", num_coming=0, most=2) == {"b": ["again"]}
    assert queue.fail("a", "died") == []
    assert queue.end_lease("a") == ()
    assert queue.end_lease("b") == ("p0",)


def test_pending_pair_is_not_queued_twice() -> None:
    queue = queue_of(2)
    queue.add("p1", "other")
    assert len(queue) == 2
    assert queue.take_counts()["duplicates"] == 1
    queue.hand_out("a", num_coming=0, most=2)
    queue.end_lease("a")
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
                    ended += queue.end_lease(name)
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
    assert list(queue.on_lease("a")) == ["p0", "p2"]
    assert (queue.num_waiting, len(queue), queue.take_counts()["cancelled"]) == (2, 4, 2)
    queue.add("p1", "again")  # while the worker still generates the first one
    assert queue.end_lease("a") == ("p0", "p2")
    assert queue.hand_out("a", num_coming=0, most=9) == {"a": ["task 3", "task 5", "again"]}


def test_a_cancelled_task_is_not_tried_again() -> None:
    queue = queue_of(2)
    queue.hand_out("a", num_coming=0, most=2)
    queue.fail("a", "died")
    queue.hand_out("a", num_coming=0, most=2)
    queue.cancel({"p0", "p1"})
    assert queue.fail("a", "died") == []
    assert (queue.num_waiting, len(queue)) == (0, 0)


# ---------------------------------------------------------------- leases that are extended


def finish(queue: WorkQueue[str], worker: str, *keys: str) -> frozenset[str]:
    return queue.finish(worker, [queue.on_lease(worker)[key] for key in keys])


def sizes(queue: WorkQueue[str], *workers: str) -> list[int]:
    return [len(queue.on_lease(worker)) for worker in workers]


def test_a_busy_worker_gets_what_is_missing_to_an_even_share() -> None:
    queue = queue_of(4)
    queue.hand_out("a", num_coming=0, most=16)
    for index in range(4, 12):
        queue.add(f"p{index}", f"task {index}")
    given = queue.hand_out("b", busy="a", num_coming=0, most=16)
    assert {name: len(tasks) for name, tasks in given.items()} == {"b": 6, "a": 2}
    assert list(queue.on_lease("a")) == ["p0", "p1", "p2", "p3", "p10", "p11"]
    assert queue.take_counts()["leases"] == 2, "an extension is no new lease"


def test_a_busy_worker_has_at_most_a_lease_full_and_leaves_the_share_of_those_who_are_coming() -> None:
    queue = queue_of(12)
    queue.hand_out("a", num_coming=1, most=16)
    assert sizes(queue, "a") == [6]
    assert queue.hand_out("", busy="a", num_coming=1, most=16) == {}
    assert finish(queue, "a", "p0", "p3") == {"p0", "p3"}
    assert queue.hand_out("", busy="a", num_coming=1, most=16) == {"a": ["task 6"]}, "5 of the 10 that are left"
    assert len(queue.hand_out("", busy="a", num_coming=0, most=7)["a"]) == 2
    assert (sizes(queue, "a"), queue.num_leased, queue.num_waiting) == ([7], 7, 3)


def test_a_worker_above_its_share_keeps_what_it_has() -> None:
    queue = queue_of(9)
    queue.hand_out("a", num_coming=0, most=9)
    queue.add("p9", "task 9")
    assert queue.hand_out("b", busy="a", num_coming=0, most=9) == {"b": ["task 9"]}
    queue.add("p10", "task 10")
    assert queue.hand_out("", busy="ab", num_coming=0, most=9) == {"b": ["task 10"]}


def test_no_lease_is_extended_while_suspects_wait_nor_one_that_has_a_suspect() -> None:
    queue = queue_of(5)
    queue.hand_out("ab", num_coming=0, most=2)
    queue.fail("a", "died")
    assert finish(queue, "b", "p2") == {"p2"}
    assert queue.hand_out("", busy="b", num_coming=0, most=2) == {}, "so that b becomes idle and takes a suspect"
    assert queue.hand_out("c", busy="b", num_coming=0, most=2) == {"c": ["task 0"]}
    assert queue.hand_out("d", busy="bc", num_coming=0, most=2) == {"d": ["task 1"], "b": ["task 4"]}
    queue.add("p5", "task 5")
    assert queue.hand_out("", busy="bcd", num_coming=0, most=2) == {}, "c and d work on suspects alone"


def test_tasks_that_were_not_sent_yet_cost_no_attempt_when_their_worker_fails() -> None:
    queue = queue_of(3, max_attempts=1)
    queue.hand_out("a", num_coming=0, most=3)
    lost = queue.fail("a", "died", started={"p1"})
    assert [one.pair_id for one in lost] == ["p1"]
    assert queue.hand_out("b", num_coming=0, most=3) == {"b": ["task 0", "task 2"]}


def test_a_suspect_that_is_given_back_is_still_leased_alone() -> None:
    queue = queue_of(3)
    queue.hand_out("a", num_coming=0, most=2)
    queue.fail("a", "died")
    queue.hand_out("a", num_coming=0, most=2)
    queue.give_back("a")
    assert queue.hand_out("abc", num_coming=0, most=2) == {"a": ["task 0"], "b": ["task 1"], "c": ["task 2"]}


def test_a_finished_task_is_not_a_later_one_of_the_same_pair() -> None:
    queue = queue_of(1)
    old = queue.hand_out("a", num_coming=0, most=2)["a"]
    queue.cancel({"p0"})
    queue.add("p0", f"task {len(queue)}")  # an equal task, and another object
    queue.hand_out("", busy="a", num_coming=0, most=2)
    assert queue.finish("a", old) == frozenset()
    assert finish(queue, "a", "p0") == {"p0"}
    assert (len(queue), sizes(queue, "a"), queue.end_lease("a")) == (0, [0], ())


def test_with_workers_that_are_fed_every_task_ends_exactly_once_and_nobody_idles_while_tasks_wait() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        number, most = chance.randrange(1, 30), chance.randrange(1, 5)
        queue, ended = queue_of(number, max_attempts=2, max_quarantined=99), list[str]()
        for _ in range(1000):
            busy = [name for name in "abc" if queue.on_lease(name)]
            for name in set("abc") - set(busy):
                queue.end_lease(name)
            queue.hand_out([name for name in "abc" if name not in busy], busy=busy, num_coming=0, most=most)
            busy = [name for name in "abc" if queue.on_lease(name)]
            if not busy:
                break
            failed_before = any(entry.attempts for entry in queue._entries.values())
            assert failed_before or sum(sizes(queue, *"abc")) == min(3 * most, len(queue))
            name = chance.choice(busy)
            match chance.choice(["finish"] * 8 + ["fail", "give back"]):
                case "finish":
                    ended += queue.finish(name, [chance.choice(list(queue.on_lease(name).values()))])
                case "fail":
                    ended += [lost.pair_id for lost in queue.fail(name, "chance")]
                case _:
                    queue.give_back(name)
        assert sorted(ended) == sorted(f"p{index}" for index in range(number))


def test_a_lease_has_changed_when_tasks_come_or_are_dropped_and_not_when_they_are_finished() -> None:
    queue = queue_of(5)
    assert queue.take_changed() == set()
    queue.hand_out("ab", num_coming=0, most=2)
    assert queue.take_changed() == {"a", "b"}
    assert queue.take_changed() == set(), "changes are since the last call"
    queue.finish("a", [queue.on_lease("a")["p0"]])
    assert queue.take_changed() == set()
    assert queue.hand_out("", busy="ab", num_coming=0, most=2) == {"a": ["task 4"]}
    assert queue.take_changed() == {"a"}
    queue.cancel(["p2", "a pair that is not pending"])
    assert queue.take_changed() == {"b"}
    queue.forget()
    assert queue.take_changed() == {"a", "b"}
