"""Plain functions run as Ray tasks: a bounded number at once, spread over the nodes, tried again with growing waits.

The only file here that imports Ray.
"""

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError, HyperClipError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
MAX_FAILED = 10
"""Tasks that fail for good before no more are begun: then it is hardly the fault of each."""
_LONGEST_WAIT_S = 300.0


class TaskConfig(StrictModel):
    """How a step's tasks are given to Ray."""

    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs Ray reserves for a task."""
    max_retries: NonNegativeInt = 2
    """How often a task is started again whose worker or node died, whose storage failed, or that met an error of its own."""
    retry_wait_s: float = Field(default=1.0, ge=0)
    """Before it is started again; doubles each time."""
    max_in_flight: PositiveInt = 64
    """Tasks handed to Ray at once."""


class WorkerDiedError(HyperClipError):
    """A task's worker died more often than it is started again."""


class Done(NamedTuple, Generic[Result]):
    """A task that gave a result."""

    place: int
    """Of its arguments in the order they came."""
    result: Result


class Failed(NamedTuple):
    """A task that failed as often as it is tried."""

    place: int
    tries: int
    error: Exception


class _Try(NamedTuple):
    place: int
    number: int
    """1 for the first."""
    arguments: tuple[Any, ...]


def absolute(uri: str) -> str:
    """The URI as a task sees it: a worker has another working folder."""
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def fan_out(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], config: TaskConfig) -> Iterator[Result]:
    """Results of `function(*each)` in order of completion; the first failure ends it.  Ray must be connected.

    Raises:
        WorkerDiedError: a worker died again and again; out of memory is the usual cause.
        Whatever the function raises, itself.
    """
    with closing(fan_out_each(function, arguments, config)) as ended:
        for one in ended:
            if isinstance(one, Failed):
                raise one.error
            yield one.result


def fan_out_each(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], config: TaskConfig
) -> Generator[Done[Result] | Failed, None, None]:
    """What becomes of `function(*each)`, in order of completion: one that fails again and again leaves the others alone.

    Arguments are taken as there is room for them, so they may be many.  After `MAX_FAILED` failures no more are taken.

    Raises:
        BadInputError: of a task; another try, or another task, would meet the same.
    """
    waiting = iter(enumerate(arguments))
    try:
        first = next(waiting)
    except StopIteration:
        return
    import ray

    if not ray.is_initialized():  # Ray would start a cluster of its own, without our settings
        raise RuntimeError("fan_out needs a connection to Ray; wrap the call in infra.cluster.connected")

    # tried again here and not by Ray, which knows no waiting and would start a task again while its node is still going down
    remote: Any = ray.remote(num_cpus=config.num_cpus, max_retries=0, scheduling_strategy="SPREAD")(function)
    fresh = (_Try(place, 1, each) for place, each in itertools.chain([first], waiting))
    running: dict[Any, _Try] = {}
    later: list[tuple[float, int, _Try]] = []
    failed, more = 0, True
    try:
        while more or running or later:
            while len(running) < config.max_in_flight:
                if later and later[0][0] <= time.monotonic():
                    one = heapq.heappop(later)[2]
                elif not more or failed >= MAX_FAILED or (found := next(fresh, None)) is None:
                    more = False
                    break
                else:
                    one = found
                running[remote.remote(*one.arguments)] = one
            # one that is due has to wait for room all the same
            room = len(running) < config.max_in_flight
            wait_s = max(0.0, later[0][0] - time.monotonic()) if later and room else None
            if not running:
                time.sleep(wait_s or 0.0)
                continue
            for ready in ray.wait(list(running), num_returns=1, timeout=wait_s)[0]:
                one = running.pop(ready)
                try:
                    result = ray.get(ready)
                except ray.exceptions.RayError as problem:
                    error = _error_of(problem, function, one)
                    if isinstance(error, BadInputError):
                        raise error from problem
                    if one.number <= config.max_retries and not isinstance(error, CorruptArtefactError):
                        wait_s = min(config.retry_wait_s * 2 ** (one.number - 1), _LONGEST_WAIT_S)
                        logger.warning("task %d, try %d: %s; again in %.0f s", one.place, one.number, error, wait_s)
                        heapq.heappush(later, (time.monotonic() + wait_s, one.place, one._replace(number=one.number + 1)))
                        continue
                    failed += 1
                    yield Failed(one.place, one.number, error)
                else:
                    yield Done(one.place, result)
    finally:
        for task in running:  # one failed, or the caller gave up: the others must not go on writing
            ray.cancel(task)


def _error_of(problem: Exception, function: Callable[..., Any], one: _Try) -> Exception:
    """The function's own exception, or that its worker died."""
    import ray

    if isinstance(problem, ray.exceptions.RayTaskError):
        cause = problem.cause
        error = cause if isinstance(cause, Exception) else HyperClipError(f"{type(cause).__name__}: {cause}")
        error.__cause__ = problem  # with the worker's traceback
        return error
    died = WorkerDiedError(f"a task of {function.__name__.strip('_')} was lost {one.number} times: {problem}")
    died.__cause__ = problem
    return died
