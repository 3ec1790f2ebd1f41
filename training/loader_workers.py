"""The processes that load batches: how they start, and how they hear that they are no longer needed."""

import multiprocessing.context
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from training.health import StoppedError


def loaded(loader: DataLoader[int]) -> Iterator[int]:
    """What the loader yields.

    Raises:
        StoppedError: a worker was killed.
    """
    try:
        yield from loader
    except (EOFError, ConnectionError, RuntimeError) as error:
        # a worker's own errors say so; a lost connection is that to a worker, whose death was not noticed yet
        its_own = "in DataLoader worker process" in str(error)
        if its_own or (isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error)):
            raise
        raise StoppedError(
            f"a loader worker ended without a word ({str(error) or type(error).__name__}). Mostly the system kills it because "
            f"memory ran out: lower loader_workers={loader.num_workers}, or give more (shared) memory"
        ) from error


def loader_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a server process that has imported their code once.

    Not from the training process: a fork of one that runs collective threads can hang.  And not spawned: every worker would
    import torch for itself, which takes seconds of processor time and 250 MB each.
    """
    context = _LoaderContext()
    context.set_forkserver_preload(["training.samples"])
    return context


class _LoaderContext(multiprocessing.context.ForkServerContext):
    """With an event that no process can lock: torch's loader asks its event before it reports that a worker died.

    The standard one is locked while it is asked, also by every worker between two batches.  A worker that was killed just then
    (out of memory, say) left it locked, and training hung instead of failing.
    """

    def Event(self) -> Any:  # noqa: N802 (overrides)
        return _Flag()


class _Flag:
    """What torch's loader uses of an event: one byte of shared memory, which goes from 0 to 1 once."""

    def __init__(self) -> None:
        self._byte = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def set(self) -> None:
        self._byte.fill_(1)

    def is_set(self) -> bool:
        return bool(self._byte.item())
