"""Where the time between two logged steps went."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Wait = Literal["data", "checkpoint", "tracking"]
WAITS: tuple[Wait, ...] = ("data", "checkpoint", "tracking")


class Interval:
    """Wall-clock time of this process since the last `take`, and how much of it the training thread waited for what."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = dict.fromkeys(WAITS, 0.0)
        self._steps = 0
        self._samples = 0

    @contextmanager
    def waiting_for(self, what: Wait) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._waited[what] += time.perf_counter() - before

    def step_done(self, *, samples: int) -> None:
        self._steps += 1
        self._samples += samples

    def take(self) -> dict[str, float]:
        """Figures of the interval, which begins anew.  At least one step must be done."""
        now = time.perf_counter()
        seconds = now - self._started
        figures = {
            "samples_per_second": self._samples / seconds,
            "step_seconds": seconds / self._steps,
            **{f"{what}_wait_share": waited / seconds for what, waited in self._waited.items()},
        }
        self._started, self._waited, self._steps, self._samples = now, dict.fromkeys(WAITS, 0.0), 0, 0
        return figures


def peak_memory(device: torch.device) -> dict[str, float]:
    """Of this process in GiB: resident, and on its GPU where it has one."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    found = {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        found["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found
