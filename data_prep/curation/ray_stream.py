"""A plain function over many inputs on Ray Data: streaming, bounded, in order of completion.

The only file here that imports Ray Data.  What a call leaves on storage is its result; what it returns is a few plain values.
So a pass goes on by leaving out the inputs whose result is there, which Ray Data does not know.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tenacity

from data_prep.fan_out import TaskConfig, WorkerDiedError
from infra.errors import HyperClipError


class TaskFailedError(HyperClipError):
    """A task could not do its work; storage is the usual cause."""


class _Call:
    """Arguments as they are: Arrow, in which rows travel, would make other types of them."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments


def stream(
    function: Callable[..., tuple[Any, ...]], arguments: Sequence[tuple[Any, ...]], config: TaskConfig
) -> Iterator[tuple[Any, ...]]:
    """`function(*each)` in order of completion, values JSON knows.  Ray must be connected.

    Raises:
        TaskFailedError: the function failed; with OSError, again and again.
        WorkerDiedError: a worker died again and again; out of memory is the usual cause.
    """
    if not arguments:
        return
    import ray
    import ray.data

    if not ray.is_initialized():  # Ray would start a cluster of its own, without our settings
        raise RuntimeError("stream needs a connection to Ray; wrap the call in infra.cluster.connected")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors travel as exceptions, progress by our own reports
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False

    def call(row: dict[str, Any]) -> dict[str, Any]:
        return _called(function, row["item"].arguments, config.max_retries)

    # an input is a block of its own, so that its row comes back as soon as it is done
    inputs = ray.data.from_items([_Call(each) for each in arguments], override_num_blocks=len(arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the one way to say `max_retries`, which is endless else
        results = inputs.map(
            call,
            num_cpus=config.num_cpus,
            concurrency=min(config.max_in_flight, len(arguments)),
            ray_remote_args_fn=lambda: {"max_retries": config.max_retries},
        )
    try:
        for row in results.iter_rows():
            if row["failure"]:
                raise TaskFailedError(f"a task of {function.__name__.strip('_')} failed: {row['failure']}")
            yield tuple(json.loads(row["result"]))
    except ray.exceptions.RayTaskError:
        raise  # a bug of ours, with the worker's traceback
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(
            f"a task of {function.__name__.strip('_')} was lost {config.max_retries + 1} times: {error}"
        ) from error


def _called(function: Callable[..., tuple[Any, ...]], arguments: tuple[Any, ...], max_retries: int) -> dict[str, str | None]:
    """In the worker.  Ray Data hides what a function raised, so failures come back as text."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        stop=tenacity.stop_after_attempt(max_retries + 1),
        wait=tenacity.wait_random_exponential(max=5),
        reraise=True,
    )
    try:
        return {"result": json.dumps(retrying(function, *arguments)), "failure": None}
    except (OSError, HyperClipError) as error:
        return {"result": None, "failure": f"{type(error).__name__}: {error}"}
