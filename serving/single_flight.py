"""Identical work that is asked for at the same time is done once."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

Result = TypeVar("Result")


class SingleFlight:
    """Shares one running call among all who ask for the same key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def do(self, key: Hashable, work: Callable[[], Awaitable[Result]]) -> Result:
        """The result of `work`, or of the call with this key that is already running.

        A caller who is cancelled leaves the work running for the others.
        """
        if key not in self._running:
            future = asyncio.ensure_future(work())
            self._running[key] = future
            future.add_done_callback(lambda done: self._forget(key, done))
        return cast(Result, await asyncio.shield(self._running[key]))

    def _forget(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # counts as seen, also when every caller has gone
