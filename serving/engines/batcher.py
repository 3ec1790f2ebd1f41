"""Gathers what callers submit, one by one, into batches for a model that runs one batch at a time.

Continuous batching: while a batch runs the next gathers, and as soon as the model is free it takes what is there.  Only an idle
model waits, and only until its batch is full or whoever came first has waited `wait_s`.

- Whoever is cancelled leaves the queue at once, and costs no forward pass.
- An item that makes the forward pass fail, fails alone: the batch is halved until it is found, the others get their answers.
- The queue is fair (`FairQueue`) and bounded: what does not fit is refused when it comes, not answered late.

Serve's own `@serve.batch` knows no fairness, and has hung on cancelled callers and on failing items (ray#50046, ray#66140).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from infra.errors import HyperClipError
from serving.engines.fair_queue import FairQueue

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(HyperClipError):
    """As many items wait as may; try again later."""


class BatcherClosedError(HyperClipError):
    """The batcher has been closed; another replica may answer."""


class ForwardError(HyperClipError):
    """The forward pass fails on this item, also when it is alone; the cause says how."""


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """What a batch gave for one item."""

    result: Result
    batch_size: int
    forward_s: float


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[Batched[Result]]
    since: float
    """On the clock of the event loop."""


class Batcher(Generic[Item, Result]):
    """One queue, one thread, one forward pass at a time.  All methods are for one event loop."""

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Result]], *, max_batch_size: int, wait_s: float, capacity: int
    ) -> None:
        """Args:
        run: a forward pass, called in a thread of its own; one result per item.
        wait_s: how long an idle model waits for more, counted from the arrival of the first.
        capacity: items that may wait.
        """
        self._run = run
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._capacity = capacity
        self._queue: FairQueue[_Waiting[Item, Result]] = FairQueue()
        self._changed = asyncio.Event()
        self._closed = False
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")

    @property
    def num_waiting(self) -> int:
        """Items that are in no batch yet."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        return len(self._queue) >= self._capacity

    async def submit(self, item: Item, *, tenant: str, task: str) -> Batched[Result]:
        """Put an item into one of the next batches and wait for its result.

        Raises:
            QueueFullError: too many wait already.
            BatcherClosedError: it takes nothing more.
            ForwardError: the forward pass fails on this item.
        """
        if self._closed:
            raise BatcherClosedError("this replica is ending; try again")
        if self.is_full:
            raise QueueFullError(f"{self._capacity:,} items wait already; try again")
        loop = asyncio.get_running_loop()
        if self._runner is None:
            self._runner = loop.create_task(self._serve())
        waiting = _Waiting[Item, Result](item, loop.create_future(), loop.time())
        self._queue.put(waiting, tenant=tenant, task=task)
        self._changed.set()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._queue.discard(waiting)
            raise

    async def close(self) -> None:
        """Take nothing more, answer what waits, and end the thread."""
        self._closed = True
        self._changed.set()
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def _serve(self) -> None:
        while True:
            if self._queue:
                await self._let_fill()
                await self._forward(self._queue.take(self._max_batch_size))
            elif self._closed:
                return
            else:
                await self._change()

    async def _let_fill(self) -> None:
        """Until the batch is full, or the oldest has waited long enough: during the last batch, more often than not."""
        until = self._queue.oldest.since + self._wait_s
        if asyncio.get_running_loop().time() >= until:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while 0 < len(self._queue) < self._max_batch_size and not self._closed:
                    await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _forward(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        """Run and answer a batch; one that fails is run again in halves."""
        batch = [waiting for waiting in batch if not waiting.answer.done()]  # some may have gone during the other half
        if not batch:
            return
        items = [waiting.item for waiting in batch]
        try:
            results, seconds = await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, items)
        except ForwardError as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            middle = len(batch) // 2
            await self._forward(batch[:middle])
            await self._forward(batch[middle:])
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(Batched(result, len(batch), seconds))

    def _timed(self, items: Sequence[Item]) -> tuple[Sequence[Result], float]:
        """Raises nothing but ForwardError: a future would not take StopIteration, and hand on what ends a program."""
        started = time.perf_counter()
        try:
            results = self._run(items)
        except BaseException as error:
            raise ForwardError(f"the forward pass fails: {type(error).__name__}") from error
        if len(results) != len(items):
            raise ForwardError(f"the forward pass gave {len(results)} results for {len(items)} items")
        return results, time.perf_counter() - started


def _fail(waiting: _Waiting[Item, Result], error: ForwardError) -> None:
    logger.error("the forward pass fails on one item", exc_info=error)
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
