"""Plain functions run as Ray tasks: a bounded number at once, started again when a worker dies.

The only file here that imports Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from infra import storage
from infra.config import StrictModel
from infra.errors import HyperClipError

Result = TypeVar("Result")


class TaskConfig(StrictModel):
    """How a step's tasks are given to Ray."""

    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs Ray reserves for a task."""
    max_retries: NonNegativeInt = 2
    """How often a task is started again whose worker died or whose storage failed."""
    max_in_flight: PositiveInt = 64
    """Tasks handed to Ray at once."""


class WorkerDiedError(HyperClipError):
    """A task's worker died more often than it is started again."""


def absolute(uri: str) -> str:
    """The URI as a task sees it: a worker has another working folder."""
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def fan_out(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], config: TaskConfig) -> Iterator[Result]:
    """Results of `function(*each)` in order of completion.  Ray must be connected.

    Raises:
        WorkerDiedError: a worker died again and again; out of memory is the usual cause.
        Whatever the function raises, itself.
    """
    if not arguments:
        return
    import ray

    if not ray.is_initialized():  # Ray would start a cluster of its own, without our settings
        raise RuntimeError("fan_out needs a connection to Ray; wrap the call in infra.cluster.connected")

    remote: Any = ray.remote(num_cpus=config.num_cpus, max_retries=config.max_retries, retry_exceptions=[OSError])(function)
    waiting = list(reversed(arguments))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < config.max_in_flight:
                running.append(remote.remote(*waiting.pop()))
            (ready,), running = ray.wait(running, num_returns=1)
            yield ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the function's own exception, with the worker's traceback behind it
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(
            f"a task of {function.__name__.strip('_')} was lost {config.max_retries + 1} times: {error}"
        ) from error
    finally:
        for task in running:  # one failed, or the caller gave up: the others must not go on writing
            ray.cancel(task)
