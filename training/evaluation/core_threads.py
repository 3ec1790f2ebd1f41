"""Threads that compute on one core each, for work that comes in many small parts.

A batch per core is faster than one batch after the other on all cores: no layer waits for its slowest core, and what a core
decodes is still in its cache when it is encoded.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def core_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch computes with here, each of them on one core."""
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(count)  # said in one thread, it also holds for all that start later
