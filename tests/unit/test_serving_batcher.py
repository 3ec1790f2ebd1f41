"""The batcher: gathering, turns, cancelled callers, items that fail, a full queue, the end."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from serving.engines.batcher import Batched, Batcher, BatcherClosedError, ForwardError, QueueFullError

LONG_S = 60.0
"""Longer than a test may take: where a batch waits so long, it is closed by something else."""


class Model:
    """Doubles numbers, batch by batch; can be held, and fails on what is in `poison`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: dict[int, BaseException] = {}
        self._may_run = threading.Event()
        self._may_run.set()
        self.entered = threading.Semaphore(0)

    def hold(self) -> None:
        self._may_run.clear()

    def release(self) -> None:
        self._may_run.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self._may_run.wait(LONG_S)
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        return [2 * item for item in items]


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LONG_S):  # a hang is a failure
            await scenario()

    asyncio.run(bounded())


def batcher_of(
    model: Callable[[Sequence[int]], Sequence[int]], *, size: int = 4, wait_s: float = 0.0, capacity: int = 100
) -> Batcher[int, int]:
    return Batcher(model, max_batch_size=size, wait_s=wait_s, capacity=capacity)


def submit(batcher: Batcher[int, int], item: int, *, tenant: str = "a", task: str = "t") -> "asyncio.Task[Batched[int]]":
    return asyncio.create_task(batcher.submit(item, tenant=tenant, task=task))


async def running(model: Model) -> None:
    """Until the model has begun another batch."""
    await asyncio.to_thread(model.entered.acquire)


async def occupied(batcher: Batcher[int, int], model: Model, item: int) -> "asyncio.Task[Batched[int]]":
    """Hold the model and give it an item: what comes after that gathers until it is released."""
    model.hold()
    submitted = submit(batcher, item)
    await running(model)
    return submitted


async def waiting(batcher: Batcher[int, int], number: int) -> None:
    while batcher.num_waiting != number:
        await asyncio.sleep(0)  # lets the other coroutines run; takes no time


def test_while_a_batch_runs_the_next_gathers() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model)
        first = await occupied(batcher, model, 1)
        later = [submit(batcher, item) for item in range(2, 8)]
        await waiting(batcher, 6)
        model.release()
        answers = [(await task).result for task in (first, *later)]
        assert answers == [2, 4, 6, 8, 10, 12, 14]
        assert model.batches == [[1], [2, 3, 4, 5], [6, 7]]
        assert [(await task).batch_size for task in (first, *later)] == [1, 4, 4, 4, 4, 2, 2]
        await batcher.close()

    play(scenario)


def test_a_full_batch_does_not_wait() -> None:
    async def scenario() -> None:
        batcher = batcher_of(Model(), size=3, wait_s=LONG_S * 10)
        answers = await asyncio.gather(*(submit(batcher, item) for item in range(3)))
        assert [answer.batch_size for answer in answers] == [3, 3, 3]
        await batcher.close()

    play(scenario)


def test_an_idle_model_waits_a_little_for_company() -> None:
    async def scenario() -> None:
        batcher = batcher_of(Model(), size=100, wait_s=0.01)
        one, other = await asyncio.gather(submit(batcher, 1), submit(batcher, 2))
        assert (one.batch_size, other.batch_size) == (2, 2)
        alone = await submit(batcher, 3)
        assert (alone.result, alone.batch_size) == (6, 1)  # and not for ever
        await batcher.close()

    play(scenario)


def test_tenants_and_their_tasks_take_turns() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, size=4)
        tasks = [await occupied(batcher, model, 0)]
        tasks += [submit(batcher, 10 + item, tenant="busy", task="one") for item in range(6)]
        tasks += [submit(batcher, 20 + item, tenant="busy", task="two") for item in range(2)]
        tasks += [submit(batcher, 30, tenant="calm", task="one")]
        await waiting(batcher, 9)
        model.release()
        await asyncio.gather(*tasks)
        assert model.batches == [[0], [10, 30, 20, 11], [21, 12, 13, 14], [15]]
        await batcher.close()

    play(scenario)


def test_who_is_cancelled_while_waiting_costs_no_pass() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model)
        first = await occupied(batcher, model, 1)
        gone, stays = submit(batcher, 2), submit(batcher, 3)
        await waiting(batcher, 2)
        gone.cancel()
        await waiting(batcher, 1)  # its place is free at once
        model.release()
        assert [(await task).result for task in (first, stays)] == [2, 6]
        assert model.batches == [[1], [3]]
        assert gone.cancelled()
        await batcher.close()

    play(scenario)


def test_who_is_cancelled_in_a_running_batch_takes_nobody_along() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, size=2, wait_s=LONG_S * 10)
        model.hold()
        gone, stays = submit(batcher, 1), submit(batcher, 2)
        await running(model)
        gone.cancel()
        model.release()
        assert (await stays).result == 4
        assert (await asyncio.gather(submit(batcher, 3), submit(batcher, 4)))[0].result == 6  # it goes on
        await batcher.close()

    play(scenario)


def test_when_all_who_waited_are_cancelled_the_batcher_goes_on() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, size=2, wait_s=LONG_S * 10)
        gone = submit(batcher, 1)
        await waiting(batcher, 1)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        await asyncio.gather(submit(batcher, 2), submit(batcher, 3))
        assert model.batches == [[2, 3]]
        await batcher.close()

    play(scenario)


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_an_item_that_fails_fails_alone(error: BaseException) -> None:
    async def scenario() -> None:
        model = Model()
        model.poison[5] = error
        batcher = batcher_of(model, size=8, wait_s=LONG_S * 10)
        found = await asyncio.gather(*(submit(batcher, item) for item in range(8)), return_exceptions=True)
        assert isinstance(found[5], ForwardError) and found[5].__cause__ is error
        assert [one.result for one in found if isinstance(one, Batched)] == [0, 2, 4, 6, 8, 12, 14]
        assert len(model.batches) == 7  # halves: 8, 4, 4, 2, 1, 1, 2
        await batcher.close()

    play(scenario)


def test_a_batch_of_failures_only_is_answered_too() -> None:
    async def scenario() -> None:
        model = Model()
        model.poison = {item: ValueError(str(item)) for item in range(5)}
        batcher = batcher_of(model, size=5)
        found = await asyncio.gather(*(submit(batcher, item) for item in range(5)), return_exceptions=True)
        assert [str(one.__cause__) for one in found if isinstance(one, ForwardError)] == list("01234")
        assert (await submit(batcher, 7)).result == 14
        await batcher.close()

    play(scenario)


def test_a_model_that_loses_results_is_found_out() -> None:
    async def scenario() -> None:
        batcher = batcher_of(lambda items: list(items)[1:], size=2, wait_s=LONG_S * 10)
        found = await asyncio.gather(submit(batcher, 1), submit(batcher, 2), return_exceptions=True)
        assert [type(one) for one in found] == [ForwardError, ForwardError]
        await batcher.close()

    play(scenario)


def test_who_is_cancelled_while_halves_are_tried_costs_no_further_pass() -> None:
    async def scenario() -> None:
        model = Model()
        model.poison[1] = ValueError("bad")
        batcher = batcher_of(model, size=2, wait_s=LONG_S * 10)
        model.hold()
        bad, gone = submit(batcher, 1), submit(batcher, 2)
        await running(model)
        gone.cancel()
        model.release()
        with pytest.raises(ForwardError):
            await bad
        assert model.batches == [[1, 2], [1]]
        await batcher.close()

    play(scenario)


def test_what_does_not_fit_is_refused() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, capacity=2)
        first = await occupied(batcher, model, 1)
        fit = [submit(batcher, item) for item in (2, 3)]
        await waiting(batcher, 2)
        assert batcher.is_full
        with pytest.raises(QueueFullError, match="2 items wait"):
            await batcher.submit(4, tenant="a", task="t")
        model.release()
        await asyncio.gather(first, *fit)
        assert not batcher.is_full
        assert (await submit(batcher, 4)).result == 8
        await batcher.close()

    play(scenario)


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = batcher_of(model, size=2, wait_s=LONG_S * 10)
        model.hold()
        tasks = [submit(batcher, item) for item in range(5)]
        await running(model)
        await waiting(batcher, 3)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BatcherClosedError):
            await batcher.submit(9, tenant="a", task="t")
        model.release()
        await closing
        assert [task.result().result for task in tasks] == [0, 2, 4, 6, 8]
        assert model.batches == [[0, 1], [2, 3], [4]]

    play(scenario)


def test_one_that_was_never_used_closes() -> None:
    play(batcher_of(Model()).close)
