"""Whose turn it is, against a simple search."""

import random

from serving.engines.fair_queue import FairQueue


def test_turns_between_tenants_then_tasks_then_order_of_arrival() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, tenant, task in [
        ("1", "a", "x"),
        ("2", "a", "x"),
        ("3", "a", "y"),
        ("4", "b", "x"),
        ("5", "b", "x"),
        ("6", "c", "z"),
    ]:
        queue.put(item, tenant=tenant, task=task)
    assert queue.oldest == "1"
    assert queue.take(4) == ["1", "4", "6", "3"]
    assert queue.oldest == "2"
    assert queue.take(9) == ["5", "2"]
    assert len(queue) == 0 and queue.take(1) == []


def test_who_comes_back_is_behind_those_who_wait() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, tenant in [("1", "a"), ("2", "b"), ("3", "b")]:
        queue.put(item, tenant=tenant, task="t")
    assert queue.take(1) == ["1"]
    queue.put("4", tenant="a", task="t")
    assert queue.take(3) == ["2", "4", "3"]


def test_discarded_items_leave_nothing_behind() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("1", tenant="a", task="t")
    queue.put("2", tenant="a", task="u")
    queue.discard("1")
    queue.discard("1")
    queue.discard("never there")
    assert (len(queue), queue.oldest, queue.take(5)) == (1, "2", ["2"])


def test_nobody_is_lost_doubled_or_passed_over() -> None:
    rng = random.Random(0)
    queue: FairQueue[int] = FairQueue()
    waits: dict[int, tuple[str, str]] = {}
    passed_over: dict[str, int] = {}  # turns since each waiting tenant was served
    for number in range(5_000):
        action = rng.random()
        if action < 0.5:
            waits[number] = (rng.choice("abcd"), rng.choice("xyz"))
            queue.put(number, tenant=waits[number][0], task=waits[number][1])
        elif action < 0.6 and waits:
            gone = rng.choice(list(waits))
            queue.discard(gone)
            del waits[gone]
        else:
            for taken in queue.take(rng.randrange(4)):
                tenant, task = waits.pop(taken)
                assert all(item > taken for item, place in waits.items() if place == (tenant, task))
                for name in {name for name, _ in waits.values()} - {tenant}:
                    passed_over[name] = passed_over.get(name, 0) + 1
                passed_over.pop(tenant, None)
                assert max(passed_over.values(), default=0) <= 3  # at most once each of the other three
        for name in passed_over.keys() - {name for name, _ in waits.values()}:
            del passed_over[name]  # has nothing waiting any more, and starts anew
        assert len(queue) == len(waits)
        if waits:
            assert queue.oldest == min(waits)
